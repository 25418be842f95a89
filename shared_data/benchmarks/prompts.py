"""From a record to an item: the wording of lm-evaluation-harness 0.4.13, to the space. A changed prompt is another benchmark.

Records are as `formats.py` returns them.

    arc({"question": "Is ice cold?", "choices": {"text": ["no", "yes"], "label": ["A", "B"]}, "answerKey": "B"}).context
"""

import re
from typing import Any

from shared_data.benchmarks.formats import LETTERS
from shared_data.benchmarks.items import ContinuationItem, GenerationItem, MultipleChoiceItem, PerplexityItem

Record = dict[str, Any]


def arc(doc: Record) -> MultipleChoiceItem:
    """The choices as whole texts, each scored after the question."""
    choices = doc["choices"]
    gold = choices["label"].index(doc["answerKey"])
    return MultipleChoiceItem(doc, f"Question: {doc['question']}\nAnswer:", tuple(choices["text"]), gold)


def hellaswag(doc: Record) -> MultipleChoiceItem:
    """`ctx_b` begins a sentence; the headings and markup of WikiHow are taken out."""
    context = f"{doc['activity_label']}: {doc['ctx_a']} {doc['ctx_b'].capitalize()}"
    endings = tuple(map(_without_markup, doc["endings"]))
    return MultipleChoiceItem(doc, _without_markup(context), endings, int(doc["label"]))


def _without_markup(text: str) -> str:
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def mmlu(doc: Record) -> MultipleChoiceItem:
    """The choices stand in the question, and only their letters are scored: one token each."""
    return _letters(doc, doc["question"], doc["choices"], "Answer:", doc["answer"])


def ceval(doc: Record) -> MultipleChoiceItem:
    """The same in Chinese."""
    gold = LETTERS.index(doc["answer"])
    return _letters(doc, doc["question"], [doc[x] for x in LETTERS], "答案：", gold)


def cmmlu(doc: Record) -> MultipleChoiceItem:
    """The same with other columns."""
    gold = LETTERS.index(doc["Answer"])
    return _letters(doc, doc["Question"], [doc[x] for x in LETTERS], "答案：", gold)


def _letters(doc: Record, question: str, choices: list[str], answer: str, gold: int) -> MultipleChoiceItem:
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    return MultipleChoiceItem(doc, "\n".join([question.strip(), *lines, answer]), LETTERS, gold)


def gsm8k(doc: Record) -> GenerationItem:
    """The target is the whole solution; `scores.py` compares the numbers after `#### `."""
    return GenerationItem(doc, f"Question: {doc['question']}\nAnswer:", doc["answer"])


def winogrande(doc: Record) -> MultipleChoiceItem:
    """Partial scoring (Trinh & Le 2018): each option fills the blank, and the text *after* the blank is scored."""
    beginning, _, rest = doc["sentence"].partition("_")
    beginnings = (beginning + doc["option1"], beginning + doc["option2"])
    return MultipleChoiceItem(doc, "", beginnings, int(doc["answer"]) - 1, ending=rest.strip())


def piqa(doc: Record) -> MultipleChoiceItem:
    """Two ways to reach a goal."""
    context = f"Question: {doc['goal']}\nAnswer:"
    return MultipleChoiceItem(doc, context, (doc["sol1"], doc["sol2"]), doc["label"])


def lambada(doc: Record) -> ContinuationItem:
    """The last word, after all others."""
    context, _, word = doc["text"].rpartition(" ")
    return ContinuationItem(doc, context, f" {word}")


def story_world(doc: Record) -> MultipleChoiceItem:
    """A question about a story, which stands in the prompt."""
    return MultipleChoiceItem(doc, doc["prompt"], tuple(doc["choices"]), doc["answer"])


def story_world_question(doc: Record) -> GenerationItem:
    """The same without choices."""
    return GenerationItem(doc, doc["prompt"], doc["reply"])


def story_world_story(doc: Record) -> PerplexityItem:
    """A story of the test split."""
    return PerplexityItem(doc, doc["text"])
