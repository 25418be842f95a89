"""Pre-tokenizer and normalizer of a `tokenizer.json`: what happens to text before BPE.

Our own files have one `Split` with a pattern and then `ByteLevel`. Others stack steps, and each step cuts the pieces of the
one before:

    GPT-2    ByteLevel(use_regex)                            SmolLM2  Digits(individual), ByteLevel(use_regex)
    Llama-3  Split(pattern), ByteLevel                       Qwen2    NFC, then Split(pattern), ByteLevel

What we cannot do exactly as `tokenizers` does is refused (`UserError`), not approximated. Level 1 is that library.

    uv run python -c "from shared_data.tokenizer.pre_tokenizer import *; print(PreTokenizer({'type': 'ByteLevel', 'add_prefix_space': False}).split('a b'))"
"""

import re
from collections.abc import Callable
from typing import Any, Literal

from shared_data.errors import UserError
from shared_data.tokenizer.split_patterns import GPT2_PATTERN, PatternSplitter
from shared_data.tokenizer.unicode_versions import NEWER_DIGITS, normalize

Definition = dict[str, Any]  # one object of tokenizer.json, with its "type"
Cut = Callable[[str], list[str]]  # one step: a piece of text to smaller pieces


class PreTokenizer:
    """Text to pre-tokens, the units inside which BPE merges."""

    def __init__(self, definition: Definition | None) -> None:
        """Build the steps of the `pre_tokenizer` object; raises `UserError` for a kind that is not byte-level."""
        steps = _flatten(definition, "pretokenizers")
        kinds = [step.get("type") for step in steps]
        if kinds.count("ByteLevel") != 1 or kinds[-1] != "ByteLevel":
            raise UserError(
                f"its pre-tokenizer ({' then '.join(map(str, kinds)) or 'none'}) does not end in ByteLevel; only byte-level BPE"
                " is supported (GPT-2, Llama-3, Qwen2, SmolLM2 …)"
            )
        cuts = [cut for step in steps for cut in _cuts_of(step)]
        # The usual case, one pattern and nothing else, goes without the loop over steps.
        self.split: Cut = cuts[0] if len(cuts) == 1 else lambda text: _chain(cuts, text)


def _flatten(definition: Definition | None, key: str) -> list[Definition]:
    """The steps of an object that may be a `Sequence` of others."""
    if definition is None:
        return []
    if definition.get("type") == "Sequence":
        return [step for part in definition[key] for step in _flatten(part, key)]
    return [definition]


def _chain(cuts: list[Cut], text: str) -> list[str]:
    """Let each step cut the pieces of the step before."""
    pieces = [text]
    for cut in cuts:
        pieces = [part for piece in pieces for part in cut(piece)]
    return pieces


def _cuts_of(step: Definition) -> list[Cut]:
    """The cuts that one step of the file stands for."""
    match step.get("type"):
        case "Split":
            return [_split_cut(step)]
        case "Digits":  # either each digit alone, or digits apart from everything else
            return [
                PatternSplitter(r"\p{N}" if step.get("individual_digits") else r"\p{N}+", NEWER_DIGITS).split
            ]
        case "ByteLevel":
            prefix: list[Cut] = [_add_prefix_space] if step.get("add_prefix_space", True) else []
            return prefix + ([PatternSplitter(GPT2_PATTERN).split] if step.get("use_regex", True) else [])
        case kind:
            raise UserError(
                f"its pre-tokenizer has a step {kind!r}, which is not supported; Split, Digits and ByteLevel are"
            )


def _add_prefix_space(text: str) -> list[str]:
    """A text that begins with a word gets the space that words have elsewhere."""
    return [text if text.startswith(" ") else " " + text]


def _split_cut(step: Definition) -> Cut:
    """A `Split` step: a pattern, and what becomes of its matches."""
    pattern = step["pattern"]
    splitter = PatternSplitter(pattern["Regex"] if "Regex" in pattern else re.escape(pattern["String"]))
    behavior, invert = step.get("behavior"), bool(step.get("invert"))
    if behavior == "Isolated":
        return splitter.split
    if behavior not in ("Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        raise UserError(f"its Split step has the behavior {behavior!r}, which is not supported; use Isolated")
    return lambda text: _apply_behavior(splitter, behavior, invert, text)


def _apply_behavior(splitter: PatternSplitter, behavior: str, invert: bool, text: str) -> list[str]:
    """Join or drop the matches of a pattern; with `invert`, the text between matches takes their part."""
    pieces: list[str] = []
    previous_matched = False
    for start, stop, matched in splitter.spans(text):
        piece, matched = text[start:stop], matched != invert
        if behavior == "Removed":
            pieces += [] if matched else [piece]
        elif pieces and (
            (behavior == "Contiguous" and matched == previous_matched)
            or (behavior == "MergedWithPrevious" and matched and not previous_matched)
            or (behavior == "MergedWithNext" and previous_matched and not matched)
        ):
            pieces[-1] += piece
        else:
            pieces.append(piece)
        previous_matched = matched
    return pieces


class Normalizer:
    """The `normalizer` object: none, NFC or NFD."""

    def __init__(self, definition: Definition | None) -> None:
        self._forms: list[Literal["NFC", "NFD"]] = []
        for step in _flatten(definition, "normalizers"):
            if (form := step.get("type")) not in ("NFC", "NFD"):
                raise UserError(f"its normalizer {form!r} is not supported; NFC and NFD are")
            self._forms.append(form)

    def __call__(self, text: str) -> str:
        """The text in these normal forms, one after the other."""
        for form in self._forms:
            text = normalize(form, text)
        return text
