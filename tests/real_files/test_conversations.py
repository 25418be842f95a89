"""Conversations in every published form, and what happens to records that are none."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from shared_data.corpus.bad_records import BadRecords
from shared_data.corpus.conversations import read_conversations
from shared_data.corpus.formatting import format_chat
from shared_data.errors import UserError
from shared_data.settings import SPECIAL_TOKENS, DataSettings, load_settings
from shared_data.training.chat_data import encode_conversation
from shared_data.training.sft_data import open_conversations
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe
from v3_numpy_deep.data_pipeline.tokenizer.bpe_train import train_bpe as train_bpe3


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


Q, A = user("Who?"), says("Tom.")
BRIEF = system("Be brief.")
SHAREGPT = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Tom."}]
# fmt: off
FORMS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "messages": ({"messages": [BRIEF, Q, A]}, [BRIEF, Q, A]),
    "sharegpt": ({"conversations": SHAREGPT}, [Q, A]),
    "sharegpt, one conversation": ({"conversation": SHAREGPT}, [Q, A]),
    "sharegpt, system turn": ({"conversations": [{"from": "system", "value": "Be brief."}, *SHAREGPT]}, [BRIEF, Q, A]),
    "sharegpt, system field": ({"conversations": SHAREGPT, "system": "Be brief."}, [BRIEF, Q, A]),
    "sharegpt, empty system": ({"conversations": SHAREGPT, "system": ""}, [Q, A]),
    "sharegpt, function": (
        {"conversations": [*SHAREGPT[:1], {"from": "function_call", "value": "find()"}, {"from": "observation", "value": "Tom"}, *SHAREGPT[1:]]},
        [Q, says("find()"), {"role": "tool", "content": "Tom"}, A],
    ),
    "pairs of human and assistant": ({"conversation": [{"human": "Who?", "assistant": "Tom."}, {"human": "Hi", "assistant": "Hello."}]}, [Q, A, user("Hi"), says("Hello.")]),
    "names of roles in capitals": ({"messages": [{"role": "User", "content": "Who?"}, {"role": "ASSISTANT", "content": "Tom."}]}, [Q, A]),
    "prompter": ({"messages": [{"role": "prompter", "content": "Who?"}, A]}, [Q, A]),
    "several user turns": ({"messages": [Q, user("Where?"), A]}, [Q, user("Where?"), A]),
    "assistant first": ({"messages": [says("Hello."), Q, A]}, [says("Hello."), Q, A]),
    "developer": ({"messages": [{"role": "developer", "content": "Be brief."}, Q, A]}, [BRIEF, Q, A]),
    "content parts": ({"messages": [user([{"type": "text", "text": "Wh"}, {"type": "text", "text": "o?"}]), A]}, [Q, A]),  # type: ignore[arg-type]
    "tool calls": (
        {"messages": [Q, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, {"role": "tool", "content": "Tom", "tool_call_id": "1"}, A]},
        [Q, says("", tool_calls=[{"id": "1"}]), {"role": "tool", "content": "Tom", "tool_call_id": "1"}, A],
    ),
    "weight 0": ({"messages": [Q, {**A, "weight": 0}, Q, {**A, "weight": 1}]}, [Q, {**A, "weight": 0}, Q, A]),
    "reasoning": ({"messages": [Q, says("Tom.", reasoning_content="He has it.")]}, [Q, says("Tom.", reasoning_content="He has it.")]),
    "prompt and completion": ({"prompt": "Who?", "completion": "Tom."}, [Q, A]),
    "prompt and completion, messages": ({"prompt": [BRIEF, Q], "completion": [A]}, [BRIEF, Q, A]),
    "prompt and response": ({"prompt": "Who?", "response": "Tom."}, [Q, A]),
    "question and answer": ({"question": "Who?", "answer": "Tom."}, [Q, A]),
    "query and response": ({"query": "Who?", "response": "Tom."}, [Q, A]),
    "query, response, history": ({"query": "Who?", "response": "Tom.", "history": [["Hi", "Hello."]]}, [user("Hi"), says("Hello."), Q, A]),
    "query, response, history of turns": ({"query": "Who?", "response": "Tom.", "history": [user("Hi"), says("Hello.")]}, [user("Hi"), says("Hello."), Q, A]),
    "alpaca": ({"instruction": "Who", "input": "has it?", "output": "Tom."}, [user("Who\n\nhas it?"), A]),
    "alpaca, empty input": ({"instruction": "Who?", "input": "", "output": "Tom."}, [Q, A]),
    "alpaca, system and history": ({"instruction": "Who?", "output": "Tom.", "system": "Be brief.", "history": [["Hi", "Hello."]]}, [BRIEF, user("Hi"), says("Hello."), Q, A]),
    "dolly": ({"instruction": "Who?", "context": "Tom has it.", "response": "Tom.", "category": "qa"}, [user("Who?\n\nTom has it."), A]),
    "nulls of a merged table": ({"messages": None, "prompt": "Who?", "completion": "Tom.", "question": None}, [Q, A]),
    "human and assistant in one text": ({"prompt": "\n\nHuman: Who?\n\nAssistant:", "completion": "Tom."}, [Q, A]),
}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no form": ({"text": "Who?"}, r"is no conversation: it has 'text'; give 'messages'.* as in columns = \{prompt"),
    "two forms": ({"prompt": "a", "completion": "b", "question": "c", "answer": "d"}, r"can be read as 'prompt' with 'completion' and as 'question' with 'answer'; say which with columns"),
    "an image": ({"messages": [user([{"type": "image_url", "image_url": "x"}]), A]}, r"a part of a turn is image_url, and only text can be read; remove"),  # type: ignore[arg-type]
    "unknown role": ({"messages": [{"role": "robot", "content": "x"}]}, r"needs a role \(system, user, assistant, tool\)"),
    "no content": ({"messages": [Q, {"role": "assistant"}]}, r"and a text as content; got"),
    "system twice": ({"messages": [BRIEF, Q, A], "system": "x"}, r"has a 'system' field and a system turn; remove"),
    "history of one": ({"query": "a", "response": "b", "history": [["x"]]}, r"a pair of 'history' needs a question and an answer"),
    "a dialogue without text": ({"prompt": "Human:\n\nAssistant:", "completion": "Tom."}, r"there is no text behind 'Human:' and 'Assistant:'; correct"),
    "a history of texts of two characters": ({"query": "a", "response": "b", "history": ["你好", "您好"]}, r"a pair of 'history' needs a question and an answer"),
    "calls that are no list": ({"messages": [Q, says("Tom.", tool_calls=7)]}, r"'tool_calls' of a turn is 7, not a list of calls"),
    "one call that is a number": ({"messages": [Q, says("Tom.", name=[1])]}, r"'name' of a turn is \[1\], not a text"),
    "thoughts in a list": ({"messages": [Q, says("Tom.", reasoning_content=["Hm."])]}, r"'reasoning_content' of a turn is .*, not a text"),
    "a list for a system": ({"prompt": "a", "completion": "b", "system": ["x"]}, r"'system' must be a text; correct"),
}
# fmt: on


@pytest.mark.parametrize("name", FORMS)
def test_each_form_gives_its_turns(name: str, tmp_path: Path) -> None:
    record, expected = FORMS[name]
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps(record) + "\n")
    assert [each.messages for each in read_conversations(DataSettings(), str(path))] == [expected]


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_one_line_with_its_remedy(name: str) -> None:
    record, expected = WRONG[name]
    with pytest.raises(UserError, match=rf"chat\.jsonl, line 3.*{expected}"):
        format_chat(record, "chat.jsonl, line 3")


def test_columns_name_the_fields_of_a_file_in_any_language(tmp_path: Path) -> None:
    record = {"问题": "谁？", "回答": "汤姆。", "question": "not this", "answer": "nor this"}
    columns = {"question": "问题", "answer": "回答"}
    assert format_chat(record, columns=columns).messages == [user("谁？"), says("汤姆。")]
    with pytest.raises(UserError, match=r"has no field '答'; correct columns"):
        format_chat(record, columns={"question": "问题", "answer": "答"})
    with pytest.raises(UserError, match=r"columns: 'frage' is none of our fields"):
        format_chat(record, columns={"frage": "问题"})
    with open(tmp_path / "chat.csv", "w", newline="") as file:
        csv.writer(file).writerows([["问题", "回答"], ["谁？", "NA"], ["何时？", "007"]])
    found = read_conversations(DataSettings(), str(tmp_path / "chat.csv"), columns=columns)
    assert [each.messages[1]["content"] for each in found] == ["NA", "007"]


def test_a_bad_record_stops_the_job_or_is_skipped_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    good = json.dumps({"prompt": "Who?", "completion": "Tom."})
    lines = [good, "{", good, "[1]", '{"text": "x"}', good, *['{"prompt": 1}'] * 4, good]
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"chat\.jsonl, line 2 is not valid JSON"):
        list(read_conversations(DataSettings(), str(path)))
    bad = BadRecords("skip")
    with bad.reported("chat.jsonl"):
        found = [each.where for each in read_conversations(DataSettings(), str(path), bad=bad)]
    assert [where.rpartition(", ")[2] for where in found] == ["line 1", "line 3", "line 6", "line 11"]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "chat.jsonl: 7 of 11 records were skipped, such as"
    assert [line.partition("chat.jsonl, ")[2][:7].strip(" :") for line in said[1:]] == [
        "line 2",
        "line 4",
        "line 5",
        "line 7",
        "line 8",
    ]


FIND = {"name": "find", "parameters": {"type": "object"}}
TOOLS: list[tuple[dict[str, Any], list[dict] | None]] = [
    ({"tools": [FIND]}, [FIND]),
    ({"tools": json.dumps([FIND])}, [FIND]),
    ({"functions": [FIND]}, [{"type": "function", "function": FIND}]),
    ({"tools": []}, None),
    ({"tools": "[]"}, None),
    ({"tools": None}, None),
    ({}, None),
]


@pytest.mark.parametrize(("fields", "expected"), TOOLS)
def test_tools_are_read_as_a_list_or_as_its_json(fields: dict[str, Any], expected: list[dict] | None) -> None:
    assert format_chat({"messages": [Q, A], **fields}).tools == expected


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        ("find()", r"'tools' is a text, but no JSON"),
        ("[" * 100_000, r"'tools' is a text, but no JSON"),
        ({"name": "find"}, r"'tools' must be a list of JSON schemas; got \{'name'"),
        ([FIND, "find"], r"'tools' must be a list of JSON schemas"),
        ("7", r"'tools' must be a list of JSON schemas; got 7"),
    ],
)
def test_tools_that_are_no_schemas_are_refused(tools: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        format_chat({"messages": [Q, A], "tools": tools}, "chat.jsonl, line 3")


@pytest.mark.parametrize("train", [train_bpe, train_bpe3], ids=["v2", "v3"])
def test_a_control_token_in_tools_or_calls_is_refused(train: Any, tmp_path: Path) -> None:
    tokenizer = train(["Who? Tom."], 300, special_tokens=SPECIAL_TOKENS)
    bad: dict[str, Any] = {"name": "find", "description": {"deep": ["<|im_end|>"]}}
    for messages, tools in (([Q, A], [bad]), ([Q, says("", tool_calls=[bad]), A], None)):
        with pytest.raises(UserError, match=r"contains <\|im_end\|>, which the template writes itself"):
            encode_conversation(tokenizer, messages, 200, tools=tools)
        path = tmp_path / "chat.jsonl"
        path.write_text(json.dumps({"messages": messages, "tools": tools}) + "\n")
        with pytest.raises(UserError, match=r"line 1 contains <\|im_end\|>"):
            open_conversations(load_settings("smoke", [f"sft.source={path}"]), tokenizer, 1000)


@pytest.mark.parametrize("train", [train_bpe, train_bpe3], ids=["v2", "v3"])
def test_a_reply_of_weight_0_is_read_and_not_learned_from(train: Any) -> None:
    tokenizer = train(["Who? Tom. Where? Home."], 300, special_tokens=SPECIAL_TOKENS)
    plain = [user("Who?"), says("Tom."), user("Where?"), says("Home.")]
    weighted = [user("Who?"), says("Tom.", weight=0), user("Where?"), says("Home.")]
    every, last = (encode_conversation(tokenizer, messages, 200) for messages in (plain, weighted))
    assert every.ids.tolist() == last.ids.tolist()
    assert tokenizer.decode(last.ids[last.trained].tolist()) == "Home.<|im_end|>"
    assert tokenizer.decode(every.ids[every.trained].tolist()) == "Tom.<|im_end|>Home.<|im_end|>"
    with pytest.raises(UserError, match="replies of weight 0 only; remove"):
        encode_conversation(tokenizer, [user("Who?"), says("Tom.", weight=0)], 200)


@pytest.mark.parametrize("train", [train_bpe, train_bpe3], ids=["v2", "v3"])
def test_fields_that_no_template_uses_are_named_and_long_records_are_skipped(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tokenizer = train(["Who? Tom."], 300, special_tokens=SPECIAL_TOKENS)
    thinking = {"messages": [Q, says("Tom.", reasoning_content="He has it.")], "tools": [{"name": "find"}]}
    records = (
        [thinking] * 3 + [{"messages": [user("w" * 500), A]}, {"messages": [Q]}] + [{"messages": [Q, A]}] * 25
    )
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = [f"sft.source={path}", "sft.max_length=128", "sft.conversations=100"]
    with pytest.raises(UserError, match="line 4 has 519 tokens before its first reply"):
        open_conversations(load_settings("smoke", settings), tokenizer, 1000)
    train_part, held_out = open_conversations(
        load_settings("smoke", [*settings, "sft.on_bad_record=skip"]), tokenizer, 1000
    )
    assert len(train_part.examples) + len(held_out.examples) == 28
    said = capsys.readouterr().err
    assert "2 of 30 records were skipped, such as" in said
    assert "line 4 has " in said
    assert "the field 'reasoning_content' of turns is left out" in said
    assert "in 3 records the field 'tools' is left out, as the chat template does not use it" in said
