"""The turns of a conversation in every published form, as `{"role", "content"}`.

    {"role": "user", "content": "Hi"}                                    OpenAI, TRL
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]}        its content parts
    {"from": "human", "value": "Hi"}                                     ShareGPT
    {"human": "Hi", "assistant": "Hello."}                               its Chinese collections: two turns
    "\\n\\nHuman: Hi\\n\\nAssistant: Hello."                             one text (Anthropic HH)

What a turn has beside its content and a template may use stays with it: `MEANINGFUL`.

    uv run python -c "from shared_data.corpus.turns import *; print(read_turns([{'from': 'human', 'value': 'Hi'}]))"
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from shared_data.errors import UserError
from shared_data.files import parse_json

Message = dict[str, Any]
Tool = dict[str, Any]  # the JSON schema of a function
ROLES = ("system", "user", "assistant", "tool")
# Other names of the roles: ShareGPT's and those of its descendants, OpenAI's earlier and later ones.
_OTHER_NAMES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "developer": "system",
}
MEANINGFUL = ("reasoning_content", "tool_calls", "tool_call_id", "name")
_REASONING = ("reasoning_content", "thinking", "reasoning")  # one field under the names of several libraries
_DIALOGUE = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")


def as_messages(value: Any, role: str, where: str = "the record") -> list[Message]:
    """A text is one turn of `role`, or a dialogue of Human and Assistant; an object is a turn, a list holds turns."""
    if isinstance(value, Mapping):
        return read_turns([value], where)
    if not isinstance(value, str):
        return read_turns(value, where)
    if is_dialogue(value):
        return _dialogue(value, where)
    return [{"role": role, "content": value}]


def is_dialogue(text: str) -> bool:
    """Whether a text holds turns of both; one that only begins with the word "Human:" is a text like any other."""
    return text.lstrip("\n").startswith("Human:") and "\n\nAssistant:" in text


def _dialogue(text: str, where: str) -> list[Message]:
    """The turns of "\\n\\nHuman: … \\n\\nAssistant: …"."""
    _, *parts = _DIALOGUE.split("\n\n" + text.lstrip("\n"))
    roles, contents = parts[::2], parts[1::2]
    names = {"Human": "user", "Assistant": "assistant"}
    turns = [{"role": names[role], "content": content} for role, content in zip(roles, contents, strict=True)]
    if turns and not turns[-1]["content"].strip():  # a prompt may end with "Assistant:"
        turns.pop()
    if not any(turn["content"].strip() for turn in turns):
        raise UserError(
            f"{where}: there is no text behind 'Human:' and 'Assistant:'; correct or remove the record"
        )
    return turns


def history_turns(history: Any, where: str = "the record") -> list[Message]:
    """Earlier turns: pairs of question and answer, or messages."""
    if not history:
        return []
    if not isinstance(history, Sequence) or isinstance(history, str):
        raise UserError(f"{where}: 'history' must be a list of pairs or of turns; got {history!r:.60}")
    if isinstance(history[0], Mapping):
        return read_turns(history, where)
    turns: list[Message] = []
    for pair in history:
        is_pair = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
        if not is_pair or not all(isinstance(text, str) for text in pair):
            raise UserError(f"{where}: a pair of 'history' needs a question and an answer; got {pair!r:.60}")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns


def read_turns(turns: Any, where: str = "the record") -> list[Message]:
    """A list of turns. Raises `UserError` for one without a known role or without text."""
    if not isinstance(turns, list) or not turns:
        raise UserError(
            f"{where}: the turns must be a list that is not empty, not {turns!r:.60}; correct or remove the record"
        )
    return [_turn(turn, where) for each in turns for turn in _of_pair(each)]


def _of_pair(turn: Any) -> list[Any]:
    """The two turns of `{"human": …, "assistant": …}`; any other turn is one."""
    if not isinstance(turn, Mapping) or not {"human", "assistant"} <= turn.keys():
        return [turn]
    return [{"role": role, "content": turn[role]} for role in ("human", "assistant")]


def _turn(turn: Any, where: str) -> Message:
    turn = (
        {key: value for key, value in turn.items() if value is not None} if isinstance(turn, Mapping) else {}
    )
    name = turn.get("role", turn.get("from"))
    role = _OTHER_NAMES.get(name.lower(), name.lower()) if isinstance(name, str) else None
    content = _text(turn.get("content", turn.get("value")), where)
    if "function_call" in turn:  # OpenAI's earlier form of one call
        turn["tool_calls"] = [{"type": "function", "function": turn["function_call"]}]
    if content is None and turn.get("tool_calls"):
        content = ""  # the calls are what is said
    if role not in ROLES or content is None:
        raise UserError(
            f"{where}: a turn needs a role ({', '.join(ROLES)}) and a text as content; got {turn!r:.60}"
        )
    turn["reasoning_content"] = next((turn[key] for key in _REASONING if turn.get(key)), None)
    kept = {key: turn[key] for key in MEANINGFUL if turn.get(key)}
    for key, value in kept.items():
        if not isinstance(value, list if key == "tool_calls" else str):
            wanted = "a list of calls" if key == "tool_calls" else "a text"
            raise UserError(
                f"{where}: {key!r} of a turn is {value!r:.40}, not {wanted}; correct or remove it"
            )
    if turn.get("weight", 1) not in (0, 1):
        raise UserError(
            f"{where}: the weight of a turn is {turn['weight']!r:.40}; write 0 or 1, or leave it out"
        )
    if turn.get("weight") == 0:  # OpenAI: this reply is not learned from
        kept["weight"] = 0
    return {"role": role, "content": content, **kept}


def read_tools(fields: Mapping[str, Any], where: str = "the record") -> list[Tool] | None:
    """The functions that the assistant may call: `tools`, a list or its JSON text as in TRL, or `functions`, OpenAI's earlier form."""
    name = next((name for name in ("tools", "functions") if fields.get(name)), None)
    tools = None if name is None else fields[name]
    if isinstance(tools, str):
        try:
            tools = parse_json(tools.encode())
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{where}: {name!r} is a text, but no JSON ({error!s:.60}); correct it"
            ) from error
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise UserError(f"{where}: {name!r} must be a list of JSON schemas; got {tools!r:.60}")
    return tools if name == "tools" else [{"type": "function", "function": tool} for tool in tools]


def _text(content: Any, where: str) -> str | None:
    """The content as one text, also of OpenAI's parts; None where it is none."""
    if not isinstance(content, list) or not content:
        return content if isinstance(content, str) else None
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
            raise UserError(
                f"{where}: a part of a turn is {kind or part!s:.40}, and only text can be read; remove the part or the record"
            )
        texts.append(part["text"])
    return "".join(texts)
