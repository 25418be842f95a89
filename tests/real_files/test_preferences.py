"""Preference pairs and prompts in every form that TRL takes, and what reward functions are given of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from trl.data_utils import extract_prompt

from shared_data.alignment.pair_batches import encode_pair, open_pair_batches
from shared_data.alignment.pairs import open_pairs
from shared_data.alignment.prompts import Prompt, open_prompts, read_prompts, score_prompts
from shared_data.alignment.rewards import check_parameters, load_reward_function
from shared_data.corpus.bad_records import BadRecords
from shared_data.corpus.formatting import format_preference, format_prompt
from shared_data.errors import UserError
from shared_data.settings import SPECIAL_TOKENS, load_settings
from shared_data.tokenizer.chat_template import CHAT_TEMPLATE
from v1_quick.align.preference_data import preference_datasets
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe
from v2_handwritten.data_pipeline.tokenizer.tokenizer import load_tokenizer

Q = {"role": "user", "content": "Who?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("Tom.", "No idea."))
MORE = {"role": "user", "content": "Sure?"}
BRIEF = {"role": "system", "content": "Be brief."}
HH = "\n\nHuman: Who?\n\nAssistant: "
EXPECTED = {"prompt": [Q], "chosen": [GOOD], "rejected": [BAD]}
# fmt: off
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "texts": ({"prompt": "Who?", "chosen": "Tom.", "rejected": "No idea."}, EXPECTED),
    "one turn each": ({"prompt": Q, "chosen": GOOD, "rejected": BAD}, EXPECTED),
    "one turn each of ShareGPT": ({"prompt": [Q], "chosen": {"from": "gpt", "value": "Tom."}, "rejected": {"from": "gpt", "value": "No idea."}}, EXPECTED),
    "messages": ({"prompt": [Q], "chosen": [GOOD], "rejected": [BAD]}, EXPECTED),
    "implicit prompt, messages": ({"chosen": [Q, GOOD], "rejected": [Q, BAD]}, EXPECTED),
    "null prompt": ({"prompt": None, "chosen": [Q, GOOD], "rejected": [Q, BAD]}, EXPECTED),
    "implicit prompt of several turns": (
        {"chosen": [BRIEF, Q, GOOD, MORE, GOOD], "rejected": [BRIEF, Q, GOOD, MORE, BAD]},
        {"prompt": [BRIEF, Q, GOOD, MORE], "chosen": [GOOD], "rejected": [BAD]},
    ),
    "prompt, and completions that begin with it": ({"prompt": "Who?", "chosen": [Q, GOOD], "rejected": [Q, BAD]}, EXPECTED),
    "human and assistant": ({"chosen": HH + "Tom.", "rejected": HH + "No idea."}, EXPECTED),
    "human and assistant, several turns": (
        {"chosen": HH + "Tom.\n\nHuman: Sure?\n\nAssistant: Tom.", "rejected": HH + "Tom.\n\nHuman: Sure?\n\nAssistant: No idea."},
        {"prompt": [Q, GOOD, MORE], "chosen": [GOOD], "rejected": [BAD]},
    ),
    "human and assistant, with paragraphs": (
        {"chosen": "\n\nHuman: Who?\n\nOr what?\n\nAssistant: Tom.", "rejected": "\n\nHuman: Who?\n\nOr what?\n\nAssistant: No idea."},
        {"prompt": [{"role": "user", "content": "Who?\n\nOr what?"}], "chosen": [GOOD], "rejected": [BAD]},
    ),
    "human and assistant, explicit prompt": ({"prompt": HH.rstrip(" "), "chosen": "Tom.", "rejected": "No idea."}, EXPECTED),
    "completions of several turns": (
        {"prompt": "Who?", "chosen": [GOOD, MORE, GOOD], "rejected": [BAD, MORE, BAD]},
        {"prompt": [Q], "chosen": [GOOD, MORE, GOOD], "rejected": [BAD, MORE, BAD]},
    ),
}
# fmt: on


@pytest.mark.parametrize("name", FORMS)
def test_each_form_gives_prompt_chosen_and_rejected(name: str) -> None:
    record, expected = FORMS[name]
    assert format_preference(record) == expected


@pytest.mark.parametrize("name", [name for name, (record, _) in FORMS.items() if "prompt" not in record])
def test_an_implicit_prompt_is_that_of_trl(name: str) -> None:
    """TRL compares texts by character, so that of "Tom." and "Two." the "T" would be prompt; ours are turns."""
    record, _ = FORMS[name]
    found, theirs = format_preference(record), extract_prompt(record)
    if isinstance(record["chosen"], list):
        assert found == theirs
    else:
        text = "".join(
            {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}[turn["role"]] + turn["content"]
            for turn in found["prompt"]
        )
        assert theirs["prompt"].strip() == f"{text}\n\nAssistant:".strip()
        assert theirs["chosen"].strip() == found["chosen"][0]["content"]


def test_tools_and_calls_of_a_pair_are_in_its_tokens_at_every_level(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{{ message.content }}{{ message.tool_calls | tojson if message.tool_calls }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    ours = train_bpe(["Who? Tom."], 300, special_tokens=SPECIAL_TOKENS)
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "find"}], "reasoning_content": "Hm."}
    record = {"prompt": [Q], "chosen": [call], "rejected": [BAD], "tools": '[{"name": "find"}]'}
    path = tmp_path / "pairs.jsonl"
    path.write_text((json.dumps(record) + "\n") * 3)
    settings = load_settings("smoke", [f"dpo.source={path}"])
    for source, start in ((CHAT_TEMPLATE, ""), (template, '[{"name": "find"}]')):
        ours.config["chat_template"] = source
        ours.save(tmp_path / "tokenizer")
        tokenizer, library = (
            load(tmp_path / "tokenizer") for load in (load_tokenizer, AutoTokenizer.from_pretrained)
        )
        (prompt, chosen, _), *_ = open_pair_batches(settings, "dpo", tokenizer, 500)[0].pairs
        said = capsys.readouterr().err
        rows, _ = preference_datasets(settings, "dpo", library, 500, BadRecords())
        assert capsys.readouterr().err == said
        assert (tokenizer.decode(prompt), tokenizer.decode(chosen)) == (rows[0]["prompt"], rows[0]["chosen"])
        assert rows[0]["prompt"].startswith(start + "<|im_start|>user")
        assert rows[0]["chosen"] == ('[{"name": "find"}]' if start else "") + "<|im_end|>"
        assert ("in 3 records the field 'tools' is left out" in said) is not bool(start)
        assert "in 3 records the field 'reasoning_content' of turns is left out" in said


def test_completions_of_several_turns_are_whole_in_tokens() -> None:
    tokenizer = train_bpe(["Who? Tom."], 300, special_tokens=SPECIAL_TOKENS)
    record = format_preference(FORMS["completions of several turns"][0]) | {"where": "line 1"}
    prompt, chosen, rejected = map(tokenizer.decode, encode_pair(tokenizer, record))
    assert prompt == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    turns = "{0}<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n{0}<|im_end|>"
    assert (chosen, rejected) == (turns.format("Tom."), turns.format("No idea."))


def write(folder: Path, records: list[Any]) -> Path:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_margin_of_a_csv_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected,margin\nq,a,b,0.5\nq,a,b,\nq,a,b,2\n")
    train, held_out = open_pairs(load_settings("smoke", [f"dpo.source={path}"]), "dpo")
    assert [pair["margin"] for pair in (*held_out, *train)] == [0.5, 0.0, 2.0]
    path.write_text("prompt,chosen,rejected,margin\nq,a,b,much\n")
    with pytest.raises(UserError, match=r"line 2: the margin is 'much', not a finite number"):
        open_pairs(load_settings("smoke", [f"dpo.source={path}"]), "dpo")


@pytest.mark.parametrize("part", ["prompt", "chosen", "rejected"])
def test_a_dialogue_without_text_is_refused(part: str) -> None:
    record = {"prompt": "q", "chosen": "a", "rejected": "b"} | {part: "Human:\n\nAssistant:"}
    with pytest.raises(UserError, match="there is no text behind 'Human:'"):
        format_preference(record)
    with pytest.raises(UserError, match="there is no text behind 'Human:'"):
        format_prompt({"prompt": "Human:\n\nAssistant:"})


def test_columns_of_any_name_reach_a_reward_function() -> None:
    names = ["function", "name", "columns", "reference", "record"]

    def all_of_them(completions: list, **columns: Any) -> list[float]:
        return [float(all(columns[name] == ["x"] for name in names)) for _ in completions]

    prompt = Prompt("Who?", dict.fromkeys([*names, "prompts", "completions"], "x"))
    assert score_prompts(all_of_them, [prompt], ["Tom."]) == [1.0]


@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_bad_pairs_are_skipped_and_columns_named(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pair = {"q": "Who?", "better": "Tom.", "worse": "No idea.", "by": 2, "source": "me"}
    path = write(tmp_path, [pair, {"q": "Who?"}, pair | {"by": "much"}, *[pair] * 10])
    columns = f'{stage}.columns={{prompt="q", chosen="better", rejected="worse", margin="by"}}'
    settings = load_settings("smoke", [f"{stage}.source={path}", columns])
    with pytest.raises(UserError, match=r"line 2 has no field 'better'; correct columns"):
        open_pairs(settings, stage)
    settings = load_settings("smoke", [f"{stage}.source={path}", columns, f"{stage}.on_bad_record=skip"])
    train, held_out = open_pairs(settings, stage)
    assert (len(train), len(held_out)) == (9, 2)
    assert train[0]["prompt"] == [Q]
    assert train[0]["margin"] == 2
    said = capsys.readouterr().err
    assert "2 of 13 records were skipped" in said
    assert "fields of records that are not read: 'source' (11)" in said


@pytest.mark.parametrize(
    ("prompt", "value", "messages"),
    [
        ("Who?", "Who?", [Q]),
        ([BRIEF, Q], [BRIEF, Q], [BRIEF, Q]),
        ([Q, GOOD, MORE], [Q, GOOD, MORE], [Q, GOOD, MORE]),
        (HH.strip(), "Who?", [Q]),
    ],
)
def test_prompts_are_texts_or_messages(prompt: Any, value: Any, messages: Any, tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": prompt, "answer": "Tom."}] * 12)
    train, held_out = read_prompts(load_settings("smoke", [f"grpo.source={path}"]), "grpo")
    assert (len(train), len(held_out)) == (10, 2)
    assert train[0].messages == messages
    assert train[0].value == value
    assert train[0].columns == {"answer": "Tom."}


def test_a_prompt_that_ends_with_a_reply_is_refused() -> None:
    with pytest.raises(UserError, match="ends with a turn of the assistant; end it before"):
        format_prompt({"prompt": [Q, GOOD]})


def test_a_reward_function_gets_the_columns_of_the_prompts_in_trls_form(tmp_path: Path) -> None:
    code = "def right(prompts, completions, answer, **kwargs):\n    return [float(c == a) for c, a in zip(completions, answer)]\n"
    chat = "def chat(prompts, completions, completion_ids):\n    return [len(p) + len(c[0]['content']) + i[0] for p, c, i in zip(prompts, completions, completion_ids)]\n"
    (tmp_path / "rewards.py").write_text(code + chat)
    right, of_chat = (load_reward_function(f"{tmp_path / 'rewards.py'}:{name}") for name in ("right", "chat"))
    prompts = [Prompt("Who?", {"answer": "Tom."}), Prompt("When?", {"answer": "At 5."})]
    assert score_prompts(right, prompts, ["Tom.", "No."]) == [1.0, 0.0]
    turns = [Prompt([BRIEF, Q]), Prompt("When?")]
    assert score_prompts(of_chat, turns, ["Tom.", "At 5."], [[7], [8]]) == [2 + 4 + 7, 1 + 5 + 8]
    given = ["prompts", "completions", "completion_ids"]
    assert check_parameters(of_chat, given, "chat") == given
    with pytest.raises(
        UserError, match=r"right has the parameter 'answer', which is none of prompts, .*; rename it"
    ):
        check_parameters(right, given, "right")


def test_long_prompts_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tokenizer = train_bpe(["Who?"], 300, special_tokens=SPECIAL_TOKENS)
    path = write(tmp_path, [{"prompt": "Who?"}] * 12 + [{"prompt": "w" * 900}, {"prompt": 3}])
    options = [f"grpo.source={path}", "grpo.max_completion_length=50"]
    skipping = load_settings("smoke", [*options, "grpo.on_bad_record=skip"])
    train, held_out = open_prompts(skipping, "grpo", tokenizer, positions=200)
    assert len(train) + len(held_out) == 12
    assert "2 of 14 records were skipped" in capsys.readouterr().err
