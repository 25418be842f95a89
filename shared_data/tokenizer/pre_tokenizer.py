"""Step 2 of a `tokenizer.json`: the pre-tokenizer, which cuts text into the units inside which BPE merges.

Our own files have one `Split` with a pattern and then `ByteLevel`. Others stack steps, and each step cuts the pieces of the
one before:

    GPT-2    ByteLevel(use_regex)                Llama-3  Split(pattern), ByteLevel
    SmolLM2  Digits(individual), ByteLevel       Llama-2  Metaspace, which writes spaces as "▁", or none at all

`ByteLevel` at the end means that BPE merges bytes; without it, BPE merges characters. What we cannot do exactly as `tokenizers`
does is refused (`UserError`), not approximated. Level 1 is that library.

    uv run python -c "from shared_data.tokenizer.pre_tokenizer import *; print(PreTokenizer({'type': 'Metaspace', 'replacement': '▁'}).split('a b'))"
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from shared_data.errors import UserError
from shared_data.tokenizer.normalizer import Definition, flatten
from shared_data.tokenizer.split_patterns import GPT2_PATTERN, PATTERNS, PatternSplitter
from shared_data.tokenizer.unicode_versions import NEWER_DIGITS

Cut = Callable[[str], list[str]]  # one step: a piece of text to smaller pieces
SPACE = "▁"  # U+2581, which stands for a space where spaces are written


class PreTokenizer:
    """Text to pre-tokens.

    `split` cuts a text, or a part of one that follows an added token; `split_first` cuts the part that begins the text: some files
    put a space before the first word only.
    """

    def __init__(self, definition: Definition | None) -> None:
        """Build the steps of the `pre_tokenizer` object; raises `UserError` for a kind that is not supported."""
        steps = flatten(definition, "pretokenizers")
        kinds = [step.get("type") for step in steps]
        self.is_byte_level = "ByteLevel" in kinds
        if "ByteLevel" in kinds[:-1]:
            raise UserError(
                f"its pre-tokenizer ({' then '.join(map(str, kinds))}) cuts after ByteLevel, which is not supported;"
                " ByteLevel must be its last step"
            )
        self.first_only = any(_prepend_scheme(step) == "first" for step in steps)
        if self.first_only and any(step.get("behavior") == "Removed" for step in steps):
            raise UserError(
                "its pre-tokenizer removes text and then puts a space before the first word, which is not supported;"
                " set prepend_scheme to always or never"
            )
        cuts = [cut for step in steps for cut in _cuts_of(step)]
        # The usual case, one pattern and nothing else, goes without the loop over steps.
        self.split: Cut = cuts[0] if len(cuts) == 1 else (lambda text: _chain(cuts, text))
        self.split_first: Cut = self.split
        if self.first_only:
            firsts = [cut for step in steps for cut in _cuts_of(step, begins=True)]
            self.split_first = lambda text: _chain_first(firsts, cuts, text)
        # Whether a long text may be cut beforehand, where these patterns cut in any case.
        self.cuts_at_words = bool(steps) and (
            (kinds[0] == "ByteLevel" and steps[0].get("use_regex", True))
            or (kinds[0] == "Split" and steps[0].get("pattern", {}).get("Regex") in PATTERNS.values())
        )

    def cut_at_spaces(self) -> None:
        """Cut before every run of `▁` as well; right only where no token goes on beyond such a place."""
        split, first = self.split, self.split_first
        self.split = lambda text: [word for piece in split(text) for word in _WORDS.findall(piece)]
        self.split_first = lambda text: [word for piece in first(text) for word in _WORDS.findall(piece)]


_WORDS = re.compile(f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+")


def _chain(cuts: Sequence[Cut], text: str) -> list[str]:
    """Let each step cut the pieces of the step before."""
    pieces = [text]
    for cut in cuts:
        pieces = [part for piece in pieces for part in cut(piece)]
    return pieces


def _chain_first(firsts: Sequence[Cut], cuts: Sequence[Cut], text: str) -> list[str]:
    """The same, where the first piece of all has cuts of its own."""
    pieces = [text]
    for first, cut in zip(firsts, cuts, strict=True):
        pieces = [*first(pieces[0]), *(part for piece in pieces[1:] for part in cut(piece))]
    return pieces


def _cuts_of(step: Definition, begins: bool = False) -> list[Cut]:
    """The cuts that one step of the file stands for; `begins` where the piece is the beginning of the text."""
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
        case "Metaspace":
            return [_metaspace_cut(step, begins)]
        case kind:
            raise UserError(
                f"its pre-tokenizer has a step {kind!r}, which is not supported; Split, Digits, Metaspace and ByteLevel are"
            )


def _add_prefix_space(text: str) -> list[str]:
    """A text that begins with a word gets the space that words have elsewhere."""
    return [text if text.startswith(" ") else " " + text]


def _prepend_scheme(step: Definition) -> Any:
    """Where a `Metaspace` step puts a space that the text does not have: always, first or never."""
    return step.get("prepend_scheme", "always") if step.get("type") == "Metaspace" else None


def _metaspace_cut(step: Definition, begins: bool) -> Cut:
    """A `Metaspace` step: spaces become a visible character, and (with `split`) each one begins a piece."""
    space, scheme = step["replacement"], _prepend_scheme(step)
    if not isinstance(space, str) or len(space) != 1 or scheme not in ("always", "first", "never"):
        raise UserError(
            f"its Metaspace step has the replacement {space!r} and the prepend_scheme {scheme!r}; the first is one character, the"
            " second always, first or never"
        )
    if step.get("add_prefix_space") is False and scheme != "never":
        raise UserError(
            f"its Metaspace step has add_prefix_space=false and prepend_scheme {scheme!r}; remove the one that is wrong"
        )
    prepends = scheme == "always" or (scheme == "first" and begins)
    one_space = re.compile(f"{re.escape(space)}[^{re.escape(space)}]*|[^{re.escape(space)}]+")

    def cut(text: str) -> list[str]:
        text = text.replace(" ", space)
        if prepends and not text.startswith(space):
            text = space + text
        return one_space.findall(text) if step.get("split", True) else [text]

    return cut


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
