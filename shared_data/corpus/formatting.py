"""One form for the records that people publish: plain text, conversations, preferences.

| record | fields as published | common form |
|---|---|---|
| text | `data.text_field` (default `text`) | a string |
| chat | `messages` · `conversations` (ShareGPT) · `prompt`, `completion` · `instruction`, `input`, `output` (Alpaca) | `[{"role", "content"}, …]` |
| preference | `prompt`, `chosen`, `rejected`, as strings or as messages | the same three, as messages |

Pretraining uses the first; instruction tuning and alignment use the others.

    uv run python -c "from shared_data.corpus.formatting import format_chat; \
print(format_chat({'prompt': 'Who has the ball?', 'completion': 'Tom.'}))"
"""

from collections.abc import Mapping
from typing import Any

from shared_data.errors import UserError

Message = dict[str, str]
ROLES = ("system", "user", "assistant")
_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
}


def format_text(record: Any, text_field: str = "text", where: str = "the record") -> str:
    """The text of a record; a null is an empty text. Raises `UserError` for a missing field or one that is no text."""
    if isinstance(record, str):
        return record
    if not isinstance(record, Mapping):
        raise UserError(
            f"{where} is a {type(record).__name__}, not an object with the field {text_field!r}; write one object a record"
        )
    if text_field not in record:
        known = ", ".join(repr(name) for name in record if isinstance(name, str)) or "none"
        raise UserError(f"{where} has no field {text_field!r}; set data.text_field to one it has: {known}")
    text = record[text_field]
    if text is not None and not isinstance(text, str):
        raise UserError(
            f"{where}: the field {text_field!r} holds a {type(text).__name__}, not text; set data.text_field"
        )
    return text or ""


def format_chat(record: Mapping[str, Any], where: str = "the record") -> list[Message]:
    """The turns of a conversation record. Raises `UserError` where no known form fits."""
    if "messages" in record:
        return _messages(record["messages"], where)
    if "conversations" in record:
        return _messages(record["conversations"], where)
    if "prompt" in record and "completion" in record:
        return _as_messages(record["prompt"], "user", where) + _as_messages(
            record["completion"], "assistant", where
        )
    if "instruction" in record and "output" in record:
        parts = [part for part in (record["instruction"], record.get("input")) if part]
        if not all(isinstance(part, str) for part in parts):
            raise UserError(f"{where}: 'instruction' and 'input' must be texts; correct or remove the record")
        question = "\n\n".join(parts)
        return [*_as_messages(question, "user", where), *_as_messages(record["output"], "assistant", where)]
    raise UserError(
        f"{where} is no conversation: it has {', '.join(map(repr, record)) or 'no fields'}; give 'messages', 'prompt' and 'completion', or 'instruction' and 'output'"
    )


def format_preference(record: Mapping[str, Any], where: str = "the record") -> dict[str, list[Message]]:
    """Prompt, chosen and rejected reply, each as messages.

    Where `prompt` is missing, `chosen` and `rejected` are whole conversations (as in Anthropic's HH data): what they
    share from the start is the prompt. Raises `UserError` where no known form fits.
    """
    missing = [name for name in ("chosen", "rejected") if not record.get(name)]
    if missing:
        raise UserError(
            f"{where} has no {missing[0]!r}; a preference record needs 'chosen' and 'rejected', and usually 'prompt'"
        )
    chosen = _as_messages(record["chosen"], "assistant", where)
    rejected = _as_messages(record["rejected"], "assistant", where)
    if record.get("prompt"):
        return {
            "prompt": _as_messages(record["prompt"], "user", where),
            "chosen": chosen,
            "rejected": rejected,
        }
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0:
        raise UserError(f"{where} has no 'prompt', and 'chosen' and 'rejected' share no turn; add the prompt")
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _as_messages(value: Any, role: str, where: str) -> list[Message]:
    """A string is one turn of `role`; a list holds turns."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return _messages(value, where)


def _messages(turns: Any, where: str) -> list[Message]:
    """Turns as `{"role", "content"}`, from that form or from ShareGPT's `{"from", "value"}`."""
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where}: the turns must be a list that is not empty; got {turns!r:.60}")
    messages = []
    for turn in turns:
        turn = turn if isinstance(turn, Mapping) else {}
        name = turn.get("role", turn.get("from"))
        role = _SHAREGPT_ROLES.get(name) if isinstance(name, str) else None
        content = turn.get("content", turn.get("value"))
        if role is None or not isinstance(content, str):
            raise UserError(
                f"{where}: a turn needs a role ({', '.join(ROLES)}) and a text as content; got {turn!r:.60}"
            )
        messages.append({"role": role, "content": content})
    return messages
