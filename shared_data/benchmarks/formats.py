"""The records of published benchmarks, checked, in the columns of their hub datasets.

A benchmark is published more than once: as the authors' JSONL or CSV, and as a hub dataset with columns of its own. Each function takes
either and returns the record as the hub has it, which is what lm-evaluation-harness reads. `FormatError` says what is wrong with it.

    arc({"question": {"stem": "Is ice cold?", "choices": [{"text": "no", "label": "A"}, {"text": "yes", "label": "B"}]}, "answerKey": "B"})
"""

from typing import Any

Record = dict[str, Any]
LETTERS = ("A", "B", "C", "D")


class FormatError(ValueError):
    """What is wrong with a record, as the end of a sentence about it."""


def arc(record: Record) -> Record:
    """ARC (Clark et al. 2018): `choices` has the lists `text` and `label`; the authors' JSONL has them inside `question`."""
    question, choices = _field(record, "question", str, dict), record.get("choices")
    if isinstance(question, dict):
        question, choices = _field(question, "stem", str), question.get("choices")
    if isinstance(choices, list):
        choices = {key: [_field(choice, key, str) for choice in choices] for key in ("text", "label")}
    choices = _field({"choices": choices}, "choices", dict)
    texts, labels = (_texts(choices, key) for key in ("text", "label"))
    if len(texts) != len(labels):
        raise FormatError(f"has {len(texts)} choices and {len(labels)} labels")
    _one_of(_field(record, "answerKey", str), labels, "answerKey")
    return record | {"question": question, "choices": {"text": texts, "label": labels}}


def hellaswag(record: Record) -> Record:
    """HellaSwag (Zellers et al. 2019): `ctx_a` and `ctx_b` begin a text, `endings[label]` ends it."""
    for key in ("activity_label", "ctx_a", "ctx_b"):
        _field(record, key, str)
    endings, label = _texts(record, "endings"), str(_field(record, "label", int, str))
    _one_of(label, [str(n) for n in range(len(endings))], "label")
    return record | {"label": label}


def mmlu(record: Record) -> Record:
    """MMLU (Hendrycks et al. 2021): four `choices`, `answer` counts from 0; the authors' CSV has columns A to D and a letter."""
    if "choices" not in record:
        record = {**_four_choices(record, "question", "answer"), "choices": [record[x] for x in LETTERS]}
        record["answer"] = LETTERS.index(record["answer"])
    _field(record, "question", str)
    if len(_texts(record, "choices")) != len(LETTERS):
        raise FormatError(f"has {len(record['choices'])} choices, not four")
    _one_of(_field(record, "answer", int), range(len(LETTERS)), "answer")
    return record


def ceval(record: Record) -> Record:
    """C-Eval (Huang et al. 2023): `question`, the choices A to D, and a letter."""
    return _four_choices(record, "question", "answer")


def cmmlu(record: Record) -> Record:
    """CMMLU (Li et al. 2024): the same with capitals, `Question` and `Answer`."""
    return _four_choices(record, "Question", "Answer")


def gsm8k(record: Record) -> Record:
    """GSM8K (Cobbe et al. 2021): the answer is a solution that ends in `#### 42`."""
    for key in ("question", "answer"):
        _field(record, key, str)
    if "####" not in record["answer"]:
        raise FormatError("has an answer without `#### ` before its number")
    return record


def winogrande(record: Record) -> Record:
    """WinoGrande (Sakaguchi et al. 2020): a `sentence` with a blank `_`, two options, and the answer "1" or "2"."""
    for key in ("option1", "option2"):
        _field(record, key, str)
    if "_" not in _field(record, "sentence", str):
        raise FormatError("has a sentence without the blank `_`")
    answer = str(_field(record, "answer", int, str))
    _one_of(answer, ["1", "2"], "answer")
    return record | {"answer": answer}


def piqa(record: Record) -> Record:
    """PIQA (Bisk et al. 2020): a `goal`, two solutions, and the `label` of the right one."""
    for key in ("goal", "sol1", "sol2"):
        _field(record, key, str)
    _one_of(_field(record, "label", int), range(2), "label")
    return record


def lambada(record: Record) -> Record:
    """LAMBADA (Paperno et al. 2016), as OpenAI prepared it: a `text` whose last word is to be guessed."""
    if not _field(record, "text", str).strip():
        raise FormatError("has an empty text")
    return record


def story_world(record: Record) -> Record:
    """Multiple choice of the story world: `choices[answer]` answers the `prompt`."""
    _field(record, "prompt", str)
    _one_of(_field(record, "answer", int), range(len(_texts(record, "choices"))), "answer")
    return record


def story_world_question(record: Record) -> Record:
    """A question of the story world with its `reply`, or a story of its own as a `text`."""
    for key in ("prompt", "reply") if "text" not in record else ("text",):
        _field(record, key, str)
    return record


def _four_choices(record: Record, question: str, answer: str) -> Record:
    """A record with the columns A to D. A column of numbers may have been read as such."""
    for key in (question, *LETTERS):
        record = record | {key: str(_field(record, key, str, int, float))}
    _one_of(_field(record, answer, str), LETTERS, answer)
    return record


def _field(record: Record, name: str, *kinds: type) -> Any:
    """The value of a field that must be there and of one of these types."""
    value = record.get(name) if isinstance(record, dict) else None
    if value is None:
        raise FormatError(f"has no {name!r}")
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise FormatError(f"has {name!r} of type {type(value).__name__}, not {kinds[0].__name__}")
    return value


def _texts(record: Record, name: str) -> list[str]:
    """A list of at least two texts."""
    texts = _field(record, name, list)
    if not all(isinstance(text, str) for text in texts):
        raise FormatError(f"has something in {name!r} that is no text")
    if len(texts) < 2:
        raise FormatError(f"has {len(texts)} in {name!r}, and a choice needs at least two")
    return texts


def _one_of(value: Any, allowed: Any, name: str) -> None:
    if value not in allowed:
        raise FormatError(f"has {name} {value!r}, which is none of {', '.join(map(str, allowed))}")
