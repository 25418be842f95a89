"""What stands beside the turns of a record: read where its form reads it, else named; and which of several forms is meant."""

import json
from pathlib import Path
from typing import Any

import pytest
from trl.data_utils import extract_prompt, maybe_extract_prompt

from shared_data.corpus.bad_records import BadRecords
from shared_data.corpus.conversations import read_conversations
from shared_data.corpus.formatting import format_chat, format_preference, format_prompt
from shared_data.errors import UserError
from shared_data.settings import DataSettings


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


Q, A, NO, BRIEF = user("Who?"), says("Tom."), says("No idea."), {"role": "system", "content": "Be brief."}
CALL = {"name": "find", "arguments": "{}"}
# fmt: off
CHATS: dict[str, tuple[dict[str, Any], dict[str, str], list[dict[str, Any]]]] = {
    "columns leave the system field": ({"q": "Who?", "a": "Tom.", "system": "Be brief."}, {"prompt": "q", "response": "a"}, [BRIEF, Q, A]),
    "columns leave the history": ({"q": "Who?", "response": "Tom.", "history": [["Hi", "Hello."]]}, {"query": "q"}, [user("Hi"), says("Hello."), Q, A]),
    "columns choose a form": ({"messages": [Q, A], "prompt": "x", "completion": "y"}, {"messages": "messages"}, [Q, A]),
    "columns swap two names": ({"prompt": "Tom.", "completion": "Who?"}, {"prompt": "completion", "completion": "prompt"}, [Q, A]),
    "columns name the system": ({"prompt": "Who?", "completion": "Tom.", "sys": "Be brief."}, {"system": "sys"}, [BRIEF, Q, A]),
    "an empty field of a CSV": ({"messages": "", "prompt": "Who?", "completion": "Tom."}, {}, [Q, A]),
    "text that begins with Human": ({"prompt": "Human: a species?", "completion": "Tom."}, {}, [user("Human: a species?"), A]),
    "one function call": ({"messages": [Q, {"role": "assistant", "content": None, "function_call": CALL}, A]}, {}, [Q, says("", tool_calls=[{"type": "function", "function": CALL}]), A]),
    "thinking": ({"messages": [Q, says("Tom.", thinking="Hm.")]}, {}, [Q, says("Tom.", reasoning_content="Hm.")]),
}
# fmt: on


@pytest.mark.parametrize("name", CHATS)
def test_what_stands_beside_the_turns_is_read(name: str) -> None:
    record, columns, expected = CHATS[name]
    assert format_chat(record, columns=columns).messages == expected


def test_two_forms_are_refused_with_the_columns_that_choose_one() -> None:
    record = {"messages": [Q, A], "prompt": "x", "completion": "y"}
    with pytest.raises(UserError, match=r'say which with columns = \{messages = "messages"\}'):
        format_chat(record)
    record = {"prompt": "x", "completion": "y", "response": "z"}
    with pytest.raises(UserError, match=r'columns = \{prompt = "prompt", completion = "completion"\}'):
        format_chat(record)


@pytest.mark.parametrize(
    ("turn", "says"),
    [
        ({"role": "assistant", "content": "x", "weight": 0.5}, "the weight of a turn is 0.5; write 0 or 1"),
        ({"role": "user", "content": [{"type": "text"}]}, "a part of a turn is text, and only text can be read"),
        ({"role": "user", "content": [{"type": "image"}]}, "a part of a turn is image, and only text can be read"),
    ],
)  # fmt: skip
def test_a_turn_that_cannot_be_read_is_named(turn: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=f"line 3: {says}"):
        format_chat({"messages": [turn, A]}, "chat.jsonl, line 3")


def test_fields_that_a_form_does_not_read_are_named_with_their_count(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    squad = {"question": "Who?", "answer": "Tom.", "context": "Tom has it."}
    records = [
        squad,
        squad,
        squad | {"context": "", "id": 7, "tags": []},
        {"instruction": "Who?", "context": "c", "output": "Tom."},
    ]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    bad = BadRecords()
    with bad.reported("chat.jsonl"):
        assert len(list(read_conversations(DataSettings(), str(path), bad=bad))) == 4
    assert (
        capsys.readouterr().err
        == "chat.jsonl: fields of records that are not read: 'context' (2), 'id' (1)\n"
    )


LISTS: dict[str, dict[str, Any]] = {
    "implicit": {"chosen": [Q, A], "rejected": [Q, NO]},
    "implicit, several turns": {"chosen": [BRIEF, Q, A, Q, A], "rejected": [BRIEF, Q, A, Q, NO]},
    "implicit, one is longer": {"chosen": [Q, A, Q, A], "rejected": [Q, A]},
    "implicit, equal": {"chosen": [Q, A], "rejected": [Q, A]},
    "a text beside conversations": {"prompt": "Who?", "chosen": [Q, A], "rejected": [Q, NO]},
    "a text beside conversations with a system turn": {"prompt": "Who?", "chosen": [BRIEF, Q, A], "rejected": [BRIEF, Q, NO]},
    "explicit": {"prompt": [BRIEF, Q], "chosen": [A], "rejected": [NO]},
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_the_prompt_of_messages_is_that_of_trl(name: str) -> None:
    theirs = maybe_extract_prompt(LISTS[name])
    assert format_preference(LISTS[name]) == {part: theirs[part] for part in ("prompt", "chosen", "rejected")}


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("Q: Who?\nA: Tom.", "Q: Who?\nA: Max.", "Q: Who?\nA:"),
        ("1 + 1 = 2", "1 + 1 = 22", "1 + 1 = "),
    ],
)
def test_the_prompt_of_texts_is_that_of_trl(chosen: str, rejected: str, prompt: str) -> None:
    found = format_preference({"chosen": chosen, "rejected": rejected})
    theirs = extract_prompt({"chosen": chosen, "rejected": rejected})
    assert theirs["prompt"] == prompt
    assert {part: turns[0]["content"] for part, turns in found.items()} == theirs


def test_a_system_field_goes_before_prompts_and_pairs() -> None:
    record = {"system": "Be brief.", "question": "Who?", "chosen": "Tom.", "rejected": "No idea."}
    expected = {"prompt": [BRIEF, Q], "chosen": [A], "rejected": [NO]}
    assert format_preference(record, columns={"prompt": "question"}) == expected
    assert format_prompt(record, columns={"prompt": "question"}) == [BRIEF, Q]
