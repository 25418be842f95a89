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
print(format_chat({'prompt': 'Who has the ball?', 'completion': 'Tom.'}).messages)"
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared_data.corpus.turns import (
    Message,
    Tool,
    as_messages,
    history_turns,
    is_dialogue,
    read_tools,
    read_turns,
)
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
CHAT_FIELDS = {*WHOLE, *(name for form in QUESTION_AND_REPLY for name in form), "input", "context", "history", "system", "tools", "functions"}  # fmt: skip
PROMPT_FIELDS = {"prompt", "system"}
PREFERENCE_FIELDS = {*PROMPT_FIELDS, "chosen", "rejected", "margin", "reason", "tools", "functions"}


@dataclass(frozen=True)
class Conversation:
    """The turns of a record, the functions that the assistant may call in them, and the words that name the record in an error.

    unread: its fields that its form does not read.
    """

    messages: list[Message]
    tools: list[Tool] | None = None
    where: str = "the conversation"
    unread: tuple[str, ...] = ()


def rename(record: Record, columns: Mapping[str, str], fields: set[str], where: str) -> dict[str, Any]:
    """The record by our names, without its nulls. `columns` says what ours are called in it.

    Raises `UserError` for a column that the record has not, or a name that is none of our `fields`.
    """
    for ours, theirs in columns.items():
        if ours not in fields:
            raise UserError(f"columns: {ours!r} is none of our fields; they are {', '.join(sorted(fields))}")
        if theirs not in record:
            raise UserError(
                f"{where} has no field {theirs!r}; correct columns, or remove the record (it has {', '.join(map(repr, record))})"
            )
    taken = {*columns, *columns.values()}
    renamed = {name: value for name, value in record.items() if name not in taken}
    renamed |= {ours: record[theirs] for ours, theirs in columns.items()}
    return {name: value for name, value in renamed.items() if value is not None}


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
) -> Conversation:
    """The conversation of a record. Raises `UserError` where no known form fits, or several do."""
    fields = rename(record, columns or {}, CHAT_FIELDS, where)
    form = _chat_form(fields, columns or {}, where)
    if len(form) == 1:
        turns = read_turns(fields[form[0]], where)
    else:
        turns = [*history_turns(fields.get("history"), where), *_question(fields, form[0], where)]
        turns += as_messages(fields[form[1]], "assistant", where)
    turns = _with_system(turns, fields.get("system"), where)
    read = {*form, "system", "tools", "functions"}
    read |= {"history"} if len(form) == 2 else set()
    read |= {"input", "context"} if form[0] == "instruction" else set()
    return Conversation(turns, read_tools(fields, where), where, unread_fields(fields, read))


def _names(fields: Record) -> str:
    return ", ".join(map(repr, fields)) or "no fields"


def unread_fields(fields: Record, read: Collection[str]) -> tuple[str, ...]:
    """What stands in a record beside the fields that are read."""
    return tuple(
        name for name, value in fields.items() if value not in (None, "", [], {}) and name not in read
    )


def _chat_form(fields: Record, columns: Mapping[str, str], where: str) -> Sequence[str]:
    """The names of the fields that hold the turns; of several forms the one that `columns` names."""
    known: list[Sequence[str]] = [*((name,) for name in WHOLE), *QUESTION_AND_REPLY]
    forms = [form for form in known if set(form) <= set(fields)]
    forms = [form for form in forms if any(fields[name] not in ("", []) for name in form)] or forms
    named = [len(set(form) & set(columns)) for form in forms]
    forms = [form for form, count in zip(forms, named, strict=True) if count == max(named)]
    if len(forms) > 1:
        found = " and as ".join(" with ".join(map(repr, form)) for form in forms)
        example = ", ".join(f'{name} = "{name}"' for name in forms[0])
        raise UserError(f"{where} can be read as {found}; say which with columns = {{{example}}}")
    if not forms:
        raise UserError(
            f"{where} is no conversation: it has {_names(fields)}; give 'messages', 'prompt' and 'completion', "
            "or 'instruction' and 'output', or say what they are called, as in columns = {prompt = \"question\", completion = \"reply\"}"
        )
    return forms[0]


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
    fields = rename(record, columns or {}, PROMPT_FIELDS, where)
    prompt = fields.get("prompt")
    if (
        not prompt
        or not isinstance(prompt, str | list | Mapping)
        or (isinstance(prompt, str) and not prompt.strip())
    ):
        raise UserError(
            f"{where} has no text or turns in 'prompt'; it has {_names(fields)}; write one, or say what it is called, as in "
            'columns = {prompt = "question"}'
        )
    messages = as_messages(prompt, "user", where)
    if messages[-1]["role"] == "assistant":
        raise UserError(f"{where}: the prompt ends with a turn of the assistant; end it before the reply")
    return _with_system(messages, fields.get("system"), where)


def format_preference(
    record: Record, where: str = "the record", columns: Mapping[str, str] | None = None
) -> dict[str, list[Message]]:
    """Prompt, chosen and rejected reply, each as messages.

    Where `prompt` is missing, what `chosen` and `rejected` share from the start is the prompt, as TRL's `extract_prompt` has it: turns of
    messages and of Anthropic HH's "\\n\\nHuman: … \\n\\nAssistant: …", characters of other texts. Completions may begin with the prompt
    though it is there, too. Raises `UserError` where no known form fits.
    """
    fields = rename(record, columns or {}, PREFERENCE_FIELDS, where)
    missing = [name for name in ("chosen", "rejected") if not fields.get(name)]
    if missing:
        raise UserError(
            f"{where} has no text or turns in {missing[0]!r}; it has {_names(fields)}; say what 'chosen', 'rejected' and 'prompt' are called, as in "
            'columns = {chosen = "better", rejected = "worse"}'
        )
    texts = [fields["chosen"], fields["rejected"]]
    if not fields.get("prompt") and all(isinstance(text, str) and not is_dialogue(text) for text in texts):
        begin = _shared_characters(*texts)
        fields |= {"prompt": texts[0][:begin], "chosen": texts[0][begin:], "rejected": texts[1][begin:]}
    chosen, rejected = (as_messages(fields[part], "assistant", where) for part in ("chosen", "rejected"))
    prompt = as_messages(fields["prompt"], "user", where) if fields.get("prompt") else []
    shared = 0
    if not isinstance(fields.get("prompt"), list) and chosen[0]["role"] != "assistant":
        shared = _shared_turns(chosen, rejected)
    elif all(len(part) > len(prompt) and part[: len(prompt)] == prompt for part in (chosen, rejected)):
        shared = len(prompt)
    prompt = chosen[:shared] or prompt
    if not prompt:
        raise UserError(
            f"{where} has no 'prompt', and 'chosen' and 'rejected' share no turn and no beginning; add the prompt, or say what it is "
            'called, as in columns = {prompt = "question"}'
        )
    prompt = _with_system(prompt, fields.get("system"), where)
    return {"prompt": prompt, "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _shared_turns(chosen: list[Message], rejected: list[Message]) -> int:
    """How many turns two conversations share from the start; the last one of each is always its reply."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    return shared


def _shared_characters(chosen: str, rejected: str) -> int:
    """How many characters two texts share from the start, without the space after the last word; something of each is always left."""
    shorter = min(len(chosen), len(rejected))
    pairs = enumerate(zip(chosen, rejected, strict=False))
    shared = next((place for place, (one, other) in pairs if one != other), shorter)
    if shared == shorter:
        return shared - 1
    return shared - chosen[:shared].endswith(" ")
