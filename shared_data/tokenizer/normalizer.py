"""Step 1 of a `tokenizer.json`: the normalizer, which changes the text before it is cut.

Our own files have none. Others stack steps:

    Qwen2    NFC                                    Gemma    Replace " " by "▁"
    Llama-2  Prepend "▁", then Replace " " by "▁"   Mistral  none, or as Llama-2

What we cannot do exactly as `tokenizers` does is refused (`UserError`), not approximated. Level 1 is that library.

    uv run python -c "from shared_data.tokenizer.normalizer import *; print(Normalizer({'type': 'Prepend', 'prepend': '▁'})('a'))"
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import regex

from shared_data.errors import UserError
from shared_data.tokenizer.split_patterns import compile_pattern
from shared_data.tokenizer.unicode_versions import hide_newer_characters, normalize

Definition = dict[str, Any]  # one object of tokenizer.json, with its "type"
Change = Callable[[str], str]  # one step: a text to the text that the next one sees

# Unicode's White_Space; Python's own idea of it also has U+001C to U+001F.
SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"


LONGEST_TEXT = 4_000_000  # characters to which a step may lengthen a text


class Normalizer:
    """The `normalizer` object: its steps, one after the other."""

    def __init__(self, definition: Definition | None) -> None:
        """Build the steps; raises `UserError` for a kind that is not supported."""
        steps = flatten(definition, "normalizers")
        self._changes = [_change_of(step) for step in steps]
        # Whether the first character may be taken away, after which a text no longer "begins at its beginning".
        self.may_remove_start = any(
            (step["type"] == "Strip" and step["strip_left"])
            or (step["type"] == "Replace" and not step["content"])
            for step in steps
        )

    def __call__(self, text: str) -> str:
        """The text after all steps; an empty one stays empty."""
        for change in self._changes:
            text = change(text) if text else text
        return text


def flatten(definition: Definition | None, key: str) -> list[Definition]:
    """The steps of an object that may be a `Sequence` of others."""
    if definition is None:
        return []
    if definition.get("type") == "Sequence":
        return [step for part in definition[key] for step in flatten(part, key)]
    return [definition]


def _change_of(step: Definition) -> Change:
    """What one step of the file does to a text."""
    match step.get("type"):
        case "NFC" | "NFD" | "NFKC" | "NFKD" as form:
            return partial(normalize, form)
        case "Replace":
            return replacement(step)
        case "Prepend":
            prefix = _text(step, "prepend")
            return lambda text: prefix + text
        case "Strip":
            left, right = bool(step["strip_left"]), bool(step["strip_right"])
            return lambda text: _strip(text, left, right)
        case kind:
            raise UserError(
                f"its normalizer {kind!r} is not supported; NFC, NFD, NFKC, NFKD, Replace, Prepend and Strip are"
            )


def _strip(text: str, left: bool, right: bool) -> str:
    text = text.lstrip(SPACES) if left else text
    return text.rstrip(SPACES) if right else text


def _text(step: Definition, key: str) -> str:
    """A field that must be a text."""
    if not isinstance(step.get(key), str):
        raise UserError(
            f"its step {step.get('type')} has the {key} {step.get(key)!r}, not a text; correct it"
        )
    return str(step[key])


def replacement(step: Definition) -> Change:
    """A `Replace` step, of a normalizer or a decoder: a text or a pattern, and what stands in its place, as it is written."""
    content, pattern = _text(step, "content"), step["pattern"]
    if "String" in pattern:
        old = _text(pattern, "String")
        if not old:
            raise UserError("a Replace step has an empty pattern; name the text that it replaces")
        return lambda text: _replace_text(old, content, text)
    compiled = compile_pattern(_text(pattern, "Regex"), "pattern of a Replace step")
    return lambda text: _replace(compiled, content, text)


def _replace_text(old: str, content: str, text: str) -> str:
    length = len(text) + text.count(old) * (len(content) - len(old))
    if length > max(LONGEST_TEXT, len(text)):  # steps that double a text in turn would fill the memory
        raise UserError(
            f"a Replace step of the tokenizer makes a text of {length:,} characters; correct its content"
        )
    return text.replace(old, content)


def _replace(pattern: regex.Pattern[str], content: str, text: str) -> str:
    """Replace every match; an empty one that touches the match before it is none, as in Rust (and not in Python)."""
    hidden, parts = hide_newer_characters(text), []
    position = search_from = 0
    last_stop, growth = -1, 0
    while search_from <= len(text) and (match := pattern.search(hidden, search_from)):
        start, stop = match.span()
        if start == stop == last_stop:
            search_from += 1
            continue
        parts += [text[position:start], content]
        position = search_from = last_stop = stop
        growth += len(content) - (stop - start)
        if growth > LONGEST_TEXT:
            raise UserError(
                f"a Replace step of the tokenizer adds {growth:,} characters to a text; correct its content"
            )
    return "".join([*parts, text[position:]])
