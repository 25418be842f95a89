"""What a chat template uses beside role and content of turns; the rest is left out and named, with the number of records that have it.

uv run python -c "from shared_data.corpus.used_fields import *; print(used_fields('{{ message.tool_calls | tojson }}'))"
"""

from collections.abc import Collection, Iterable
from typing import Any

from shared_data.corpus.bad_records import BadRecords
from shared_data.corpus.turns import MEANINGFUL, Message, Tool
from shared_data.tokenizer.tokenizer import Tokenizer

_OTHER_NAMES = {"reasoning_content": ("thinking", "reasoning")}


def template_source(tokenizer: Any) -> str:
    """The Jinja of a tokenizer's chat template, of ours or of transformers'; of several, that for tools."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.get_chat_template(with_tools=True).source
    return str(tokenizer.chat_template)


def used_fields(template: str) -> list[str]:
    """Which of `tools` and `MEANINGFUL` a template uses."""
    names = {name: (name, *_OTHER_NAMES.get(name, ())) for name in (*MEANINGFUL, "tools")}
    return [name for name, spellings in names.items() if any(each in template for each in spellings)]


def name_unused(
    messages: Iterable[Message], tools: Collection[Tool] | None, used: Collection[str], bad: BadRecords
) -> None:
    """Count what a conversation has beside role, content and the fields that are used."""
    for name in {name for message in messages for name in message} - {"role", "content", *used}:
        bad.leave_out(
            f"the field {name!r} of turns is left out, as the chat template or the level does not use it"
        )
    if tools and "tools" not in used:
        bad.leave_out("the field 'tools' is left out, as the chat template does not use it")
