"""Records of every published form become the common one."""

import pytest

from shared_data.corpus.formatting import format_chat, format_preference, format_text
from shared_data.errors import UserError

USER, ASSISTANT = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Tom."}
SYSTEM = {"role": "system", "content": "Be brief."}

CHATS = [
    {"messages": [SYSTEM, USER, ASSISTANT]},
    {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Tom."}]},
    {"prompt": [SYSTEM, USER], "completion": "Tom."},
    {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]},
]  # fmt: skip


def test_every_form_of_a_conversation_becomes_messages() -> None:
    for record in CHATS:
        assert format_chat(record).messages == [SYSTEM, USER, ASSISTANT]
    assert format_chat({"prompt": "Who?", "completion": "Tom."}).messages == [USER, ASSISTANT]
    alpaca = {"instruction": "Who has it?", "input": "Tom has it.", "output": "Tom."}
    assert format_chat(alpaca).messages == [
        {"role": "user", "content": "Who has it?\n\nTom has it."},
        ASSISTANT,
    ]
    assert format_chat({**alpaca, "input": ""}).messages[0]["content"] == "Who has it?"


def test_every_form_of_a_preference_becomes_prompt_chosen_rejected() -> None:
    other = {"role": "assistant", "content": "No idea."}
    expected = {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [other]}
    assert format_preference({"prompt": "Who?", "chosen": "Tom.", "rejected": "No idea."}) == expected
    assert format_preference({"prompt": [USER], "chosen": [ASSISTANT], "rejected": [other]}) == expected
    assert format_preference({"chosen": [USER, ASSISTANT], "rejected": [USER, other]}) == expected
    same = format_preference({"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]})
    assert same == {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [ASSISTANT]}, (
        "a reply is never prompt"
    )


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"question": "Who?"}, "'question'"),
        ({"messages": []}, "not empty"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "system, user, assistant"),
        ({"messages": [{"role": "user"}]}, "a text as content"),
        ({"messages": ["Who?"]}, "a text as content"),
        ({"instruction": ["Who?"], "output": "Tom."}, "must be texts; correct"),
    ],
)
def test_a_record_without_a_conversation_is_refused(record: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        format_chat(record, "chat.jsonl, line 3")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "Who?", "chosen": "Tom."}, "'rejected'"),
        ({"chosen": "Tom.", "rejected": "Max."}, "share no turn"),
    ],
)
def test_a_record_without_a_preference_is_refused(record: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        format_preference(record)


def test_the_text_of_a_record() -> None:
    assert format_text({"text": "a"}) == "a"
    assert format_text({"story": "b", "text": 3}, "story") == "b"
    assert format_text("c") == "c"
    assert format_text({"text": None}) == ""
    with pytest.raises(UserError, match=r"line 7 has no field 'text'.* 'story'"):
        format_text({"story": "b"}, "text", "line 7")
    with pytest.raises(UserError, match="holds a int"):
        format_text({"text": 3})
    with pytest.raises(UserError, match="is a list"):
        format_text(["text"])
