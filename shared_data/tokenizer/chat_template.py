"""The chat template: a conversation as one text, by the model's own template in Jinja.

    <|im_start|>user
    Who has the red ball?<|im_end|>
    <|im_start|>assistant
    Mia has it.<|im_end|>

A model only ever continues text, so a conversation becomes text with control tokens where turns begin and end. Which ones, and what
else stands there (a default system message, tools, the date), differs from model to model; the template is saved with the tokenizer
and must be the one that the model was tuned with. `CHAT_TEMPLATE` (ChatML) is that of the models that are tuned here.

A template comes from strangers, so it runs in Jinja's sandbox, which keeps it from files and from Python's own objects. What a user types is
text: control tokens in it are marked before the template sees them, and encoded as text after it (`marked`, `split_marked`).

Level 1: `apply_chat_template` of transformers, whose text and ids these are. Theory: chat_template.md.

    uv run python -c "from shared_data.tokenizer.chat_template import *; print(ChatTemplate(CHAT_TEMPLATE).render([{'role': 'user', 'content': 'Hi'}], True))"
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jinja2
import jinja2.nodes

from shared_data.errors import UserError
from shared_data.tokenizer.jinja_sandbox import GENERATION, is_generation, sandbox
from shared_data.tokenizer.tokenizer_config import special_tokens

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"  # what instruction tuning trains on
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Characters for private use, which stand around control tokens that users typed.
_TYPED = ("\U000f0000", "\U000f0001")

Message = Mapping[str, Any]
Span = tuple[int, int]  # characters of a text, from and up to


class ChatTemplate:
    """One template with the tokens that it may name."""

    def __init__(self, source: str, variables: Mapping[str, str] | None = None) -> None:
        """source: Jinja.  variables: `bos_token`, `eos_token`, …"""
        self.source, self.variables = source, dict(variables or {})

    @cached_property
    def _syntax(self) -> jinja2.nodes.Template:
        try:
            return sandbox().parse(self.source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise UserError(
                f"the chat template is no valid Jinja ({error!s:.200}); correct it or copy it again"
            ) from error

    @cached_property
    def _template(self) -> jinja2.Template:
        try:
            return sandbox().from_string(self._syntax)
        except (SyntaxError, RecursionError, MemoryError) as error:  # of the Python that Jinja makes of it
            raise UserError(
                f"the chat template is nested too deeply ({error!s:.200}); correct it or copy it again"
            ) from error

    @cached_property
    def literals(self) -> str:
        """All text that stands in the template itself, with null characters between."""
        texts = {node.data for node in self._syntax.find_all(jinja2.nodes.TemplateData)}
        constants = self._syntax.find_all(jinja2.nodes.Const)
        texts |= {node.value for node in constants if isinstance(node.value, str)}
        return "\0".join(texts)

    @cached_property
    def marks_generation(self) -> bool:
        """Whether the template says itself which part of its text the assistant says."""
        return any(map(is_generation, self._syntax.find_all(jinja2.nodes.CallBlock)))

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation; with `add_generation_prompt` it ends where the assistant's next turn begins.

        tools: JSON schemas of functions.  variables: what else the template asks for (`enable_thinking`, `documents`, …).
        Raises `UserError` for a conversation that the template refuses.
        """
        marked = self._render(messages, add_generation_prompt, tools, variables)
        return marked.translate(dict.fromkeys(map(ord, GENERATION)))

    def render_with_spans(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None, **variables: Any
    ) -> tuple[str, list[Span]]:
        """The text of a conversation, and where in it the assistant speaks, the token that ends its turn included.

        Where the template does not mark that (`{% generation %}`), a turn is what follows the text of all turns before it and the
        generation prompt. Raises `UserError` where a template writes earlier turns differently when later ones follow.
        """
        if self.marks_generation:
            return _take_marks(self._render(messages, False, tools, variables))
        text, spans = self.render(messages, tools=tools, **variables), []
        for number, message in enumerate(messages):
            if message.get("role") == "assistant":
                before = self.render(messages[:number], True, tools, **variables)
                after = self.render(messages[: number + 1], False, tools, **variables)
                if not (after.startswith(before) and text.startswith(after)):
                    raise UserError(
                        "the chat template writes a turn of the assistant differently once other turns follow, so there is no telling which "
                        "tokens to train; mark them in the template with {% generation %}, or keep conversations to one reply"
                    )
                spans.append((len(before), len(after)))
        return text, spans

    def _render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> str:
        """The text with the marks of what the assistant says."""
        if not messages:
            raise UserError("the conversation is empty; give it at least one message")
        try:
            return self._template.render(
                messages=[_plain(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{**self.variables, **variables},
            )
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template refuses this conversation: {error}") from error
        except MemoryError as error:
            raise UserError(
                "the chat template makes a text that does not fit into memory; correct it or copy it again"
            ) from error
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
            raise UserError(
                f"the chat template cannot write this conversation ({error}); each message needs a 'role' and a text 'content'"
            ) from error


def template_of(config: Mapping[str, Any], with_tools: bool = False) -> ChatTemplate | None:
    """The template of a tokenizer's configuration (`read_config`), where it has one; of several with names, `default`.

    with_tools: that for conversations with tools, `tool_use`, where it has one.
    """
    source = config.get("chat_template")
    if isinstance(source, dict):
        source = source["tool_use"] if with_tools and "tool_use" in source else source.get("default")
    if not isinstance(source, str):
        return None
    tokens, _ = special_tokens(dict(config), None, "tokenizer_config.json")
    return ChatTemplate(source, {name: token.content for name, token in tokens.items()})


def marked(value: Any, tokens: Iterable[str]) -> Any:
    """The same strings, lists and dictionaries with marks around each of these tokens."""
    longest_first = sorted(tokens, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def mark(value: Any) -> Any:
        if isinstance(value, str):  # a mark that was typed would be forged
            text = value.translate(dict.fromkeys(map(ord, _TYPED)))
            return pattern.sub(lambda match: f"{_TYPED[0]}{match.group()}{_TYPED[1]}", text)
        if isinstance(value, Mapping):
            return {key: mark(entry) for key, entry in value.items()}
        return [mark(entry) for entry in value] if isinstance(value, list | tuple) else value

    return mark(value)


def split_marked(text: str, tokens: Iterable[str]) -> list[tuple[str, bool]]:
    """A text in pieces: (piece, whether a user typed this token). A mark that has lost its other half only parts the text."""
    longest_first = sorted(tokens, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first)) or "(?!)"
    pieces = re.split(f"{_TYPED[0]}({pattern}){_TYPED[1]}|[{''.join(_TYPED)}]", text)
    return [(piece, number % 2 == 1) for number, piece in enumerate(pieces) if piece]


def _plain(message: Message) -> dict[str, Any]:
    """A message without its empty fields, with its reasoning under both names that templates know."""
    if not isinstance(message, Mapping):
        raise TypeError(f"{message!r:.60} is no message")
    given = {name: value for name, value in message.items() if value is not None}
    thought = next(
        (given[name] for name in ("reasoning_content", "thinking", "reasoning") if name in given), None
    )
    return given if thought is None else {"thinking": thought, **given, "reasoning_content": thought}


def _take_marks(text: str) -> tuple[str, list[Span]]:
    """A text without its marks, and where they stood, in characters of the new text. Raises `UserError` where one has lost the other."""
    spans, clean, begins = [], "", []
    for part in re.split(f"([{''.join(GENERATION)}])", text):
        if part == GENERATION[0]:
            begins.append(len(clean))
        elif part != GENERATION[1]:
            clean += part
        elif begins:
            spans.append((begins.pop(), len(clean)))
        else:
            begins.append(-1)
            break
    if begins:
        raise UserError(
            "the chat template cuts the text that it marks with {% generation %}, so there is no telling which tokens to train; correct it"
        )
    return clean, spans
