"""Records of every published form become the common one, at both hand-written levels alike."""

import pytest

from shared_data.corpus.formatting import format_text as format_text_v1
from shared_data.errors import UserError
from v2_handwritten.data_pipeline.processing import formatting as v2
from v3_numpy_deep.data_pipeline.processing import formatting as v3

LEVELS = [v2, v3]
USER, ASSISTANT = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Tom."}
SYSTEM = {"role": "system", "content": "Be brief."}

CHATS = [
    {"messages": [SYSTEM, USER, ASSISTANT]},
    {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Tom."}]},
    {"prompt": [SYSTEM, USER], "completion": "Tom."},
    {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]},
]  # fmt: skip


@pytest.mark.parametrize("level", LEVELS)
def test_every_form_of_a_conversation_becomes_messages(level) -> None:
    for record in CHATS:
        assert level.format_chat(record) == [SYSTEM, USER, ASSISTANT]
    assert level.format_chat({"prompt": "Who?", "completion": "Tom."}) == [USER, ASSISTANT]
    alpaca = {"instruction": "Who has it?", "input": "Tom has it.", "output": "Tom."}
    assert level.format_chat(alpaca) == [{"role": "user", "content": "Who has it?\n\nTom has it."}, ASSISTANT]
    assert level.format_chat({**alpaca, "input": ""})[0]["content"] == "Who has it?"


@pytest.mark.parametrize("level", LEVELS)
def test_every_form_of_a_preference_becomes_prompt_chosen_rejected(level) -> None:
    other = {"role": "assistant", "content": "No idea."}
    expected = {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [other]}
    assert level.format_preference({"prompt": "Who?", "chosen": "Tom.", "rejected": "No idea."}) == expected
    assert level.format_preference({"prompt": [USER], "chosen": [ASSISTANT], "rejected": [other]}) == expected
    assert level.format_preference({"chosen": [USER, ASSISTANT], "rejected": [USER, other]}) == expected
    same = level.format_preference({"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]})
    assert same == {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [ASSISTANT]}, (
        "a reply is never prompt"
    )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"question": "Who?"}, "'question'"),
        ({"messages": []}, "not empty"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "system, user, assistant"),
        ({"messages": [{"role": "user"}]}, "a text as content"),
        ({"messages": ["Who?"]}, "a text as content"),
    ],
)
def test_a_record_without_a_conversation_is_refused(level, record: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        level.format_chat(record, "chat.jsonl, line 3")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "Who?", "chosen": "Tom."}, "'rejected'"),
        ({"chosen": "Tom.", "rejected": "Max."}, "share no turn"),
    ],
)
def test_a_record_without_a_preference_is_refused(level, record: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        level.format_preference(record)


@pytest.mark.parametrize("format_text", [format_text_v1, v2.format_text, v3.format_text])
def test_the_text_of_a_record(format_text) -> None:
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
