"""One form for the records that people publish: plain text, conversations, preferences.

| record | fields as published | common form |
|---|---|---|
| text | `data.text_field` (default `text`) | a string |
| chat | `messages` (OpenAI) · `conversations` (ShareGPT) · a question and a reply, see `QUESTION_AND_REPLY` | `[{"role", "content"}, …]` |
| preference | `chosen`, `rejected` and usually `prompt`, as texts or as messages | the three, as messages |
| prompt | `prompt`, as text or as messages | messages |

Pretraining uses the first; instruction tuning and alignment use the others. Fields of any other name are renamed by `columns`. A null is
no field: where records of several forms are merged into one table, each has nulls in the columns of the others.

    uv run python -c "from shared_data.corpus.formatting import format_chat; \
print(format_chat({'prompt': 'Who has the ball?', 'completion': 'Tom.'}))"
"""

from collections.abc import Mapping, Sequence
from typing import Any

from shared_data.corpus.turns import Message, as_messages, history_turns, read_turns
from shared_data.errors import UserError

Record = Mapping[str, Any]
WHOLE = ("messages", "conversations", "conversation")
# TRL, and the formats of Alpaca, Dolly and other instruction data.
QUESTION_AND_REPLY = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
)
CHAT_FIELDS = {*WHOLE, *(name for form in QUESTION_AND_REPLY for name in form), "input", "context", "history", "system"}  # fmt: skip
PREFERENCE_FIELDS = {"prompt", "chosen", "rejected"}


def rename(record: Record, columns: Mapping[str, str], fields: set[str], where: str) -> dict[str, Any]:
    """The record by our names. `columns` says what ours are called in it; then no other field counts as one of ours.

    Raises `UserError` for a column that the record has not.
    """
    if not columns:
        return {name: value for name, value in record.items() if value is not None}
    for ours, theirs in columns.items():
        if ours not in fields:
            raise UserError(f"columns: {ours!r} is none of our fields; they are {', '.join(sorted(fields))}")
        if theirs not in record:
            raise UserError(
                f"{where} has no field {theirs!r}; correct columns, or remove the record (it has {', '.join(map(repr, record))})"
            )
    others = {
        name: value
        for name, value in record.items()
        if name not in fields and name not in columns.values() and value is not None
    }
    return others | {ours: record[theirs] for ours, theirs in columns.items() if record[theirs] is not None}


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


def format_chat(
    record: Record, where: str = "the record", columns: Mapping[str, str] | None = None
) -> list[Message]:
    """The turns of a conversation record. Raises `UserError` where no known form fits, or several do."""
    fields = rename(record, columns or {}, CHAT_FIELDS, where)
    forms: list[Sequence[str]] = [(name,) for name in WHOLE if name in fields]
    forms += [form for form in QUESTION_AND_REPLY if set(form) <= set(fields)]
    if len(forms) > 1:
        found = " and as ".join(" with ".join(map(repr, form)) for form in forms)
        raise UserError(
            f'{where} can be read as {found}; say which with columns, as in columns = {{messages = "messages"}}'
        )
    if not forms:
        raise UserError(
            f"{where} is no conversation: it has {', '.join(map(repr, record)) or 'no fields'}; give 'messages', 'prompt' and 'completion', "
            "or 'instruction' and 'output', or name its fields with columns"
        )
    (form,) = forms
    if len(form) == 1:
        turns = read_turns(fields[form[0]], where)
    else:
        question = _question(fields, form[0], where)
        turns = [*history_turns(fields.get("history"), where), *question]
        turns += as_messages(fields[form[1]], "assistant", where)
    return _with_system(turns, fields.get("system"), where)


def _question(fields: Mapping[str, Any], name: str, where: str) -> list[Message]:
    """What the user says. Of an instruction its `input` (Alpaca) or `context` (Dolly) belongs to it."""
    if name != "instruction":
        return as_messages(fields[name], "user", where)
    parts = [part for part in (fields[name], fields.get("input"), fields.get("context")) if part]
    if not all(isinstance(part, str) for part in parts):
        raise UserError(f"{where}: 'instruction' and 'input' must be texts; correct or remove the record")
    return as_messages("\n\n".join(parts), "user", where)


def _with_system(turns: list[Message], system: Any, where: str) -> list[Message]:
    """The turns behind the system message that stands beside them."""
    if not system:
        return turns
    if not isinstance(system, str):
        raise UserError(f"{where}: 'system' must be a text; correct or remove the record")
    if turns[0]["role"] == "system":
        raise UserError(f"{where} has a 'system' field and a system turn; remove one of them")
    return [{"role": "system", "content": system}, *turns]


def format_prompt(
    record: Record, where: str = "the record", columns: Mapping[str, str] | None = None
) -> list[Message]:
    """The turns of a prompt, the last of which is not the assistant's. Raises `UserError` where there is none."""
    prompt = rename(record, columns or {}, {"prompt"}, where).get("prompt")
    if not prompt or not isinstance(prompt, str | list) or (isinstance(prompt, str) and not prompt.strip()):
        raise UserError(
            f"{where} has no text 'prompt'; write one, name its field with columns, or remove the record"
        )
    messages = as_messages(prompt, "user", where)
    if messages[-1]["role"] == "assistant":
        raise UserError(f"{where}: the prompt ends with a turn of the assistant; end it before the reply")
    return messages


def format_preference(
    record: Record, where: str = "the record", columns: Mapping[str, str] | None = None
) -> dict[str, list[Message]]:
    """Prompt, chosen and rejected reply, each as messages.

    Where `prompt` is missing, `chosen` and `rejected` are whole conversations: what they share from the start is the prompt (TRL's
    `extract_prompt`). As texts they are those of Anthropic's HH, "\\n\\nHuman: … \\n\\nAssistant: …". With a prompt they may begin with
    it, too. Raises `UserError` where no known form fits.
    """
    fields = rename(record, columns or {}, PREFERENCE_FIELDS, where)
    missing = [name for name in ("chosen", "rejected") if not fields.get(name)]
    if missing:
        raise UserError(
            f"{where} has no {missing[0]!r}; a preference record needs 'chosen' and 'rejected', and usually 'prompt'"
        )
    chosen = as_messages(fields["chosen"], "assistant", where)
    rejected = as_messages(fields["rejected"], "assistant", where)
    if fields.get("prompt"):
        prompt = as_messages(fields["prompt"], "user", where)
        begin_so = all(
            len(part) > len(prompt) and part[: len(prompt)] == prompt for part in (chosen, rejected)
        )
        start = len(prompt) if begin_so else 0
        return {"prompt": prompt, "chosen": chosen[start:], "rejected": rejected[start:]}
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0:
        raise UserError(f"{where} has no 'prompt', and 'chosen' and 'rejected' share no turn; add the prompt")
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}
