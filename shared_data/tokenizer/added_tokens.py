"""Added tokens: the strings that are found in text before BPE sees it, `<|endoftext|>` among them.

They never come out of merging. The text is searched for all of them at once, the leftmost match wins and the longest of
those that begin at one place; the text between matches goes on to BPE. A token may be `special` (skipped in decoding on
request, and ignored where text is not trusted), match only as a whole word (`single_word`), or take white space with it
(`lstrip`, `rstrip`); unless `normalized` is false, it is looked for in the normalized text.

Level 1: `tokenizers.AddedToken`.

    uv run python -c "from shared_data.tokenizer.added_tokens import *; print(AddedTokens([AddedToken(7, '<|x|>')]).split('a<|x|>b'))"
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import regex

from shared_data.tokenizer.normalizer import SPACES
from shared_data.tokenizer.unicode_versions import hide_newer_characters

Piece = str | int  # text still to be encoded, or the id of an added token


@dataclass(frozen=True)
class AddedToken:
    """One entry of `added_tokens` in a `tokenizer.json`, in the order of its fields there."""

    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True

    def to_json(self) -> dict[str, Any]:
        """The object as the file has it."""
        return asdict(self)


class AddedTokens:
    """Finds added tokens in text."""

    def __init__(self, tokens: Iterable[AddedToken], normalize: Callable[[str], str] = str) -> None:
        self.by_content = {token.content: token for token in tokens if token.content}
        self._normalize = normalize
        everyone = self.by_content.values()
        self._raw = _Finder({token.content: token for token in everyone if not token.normalized})
        self._normalized = _Finder(
            {normalize(token.content): token for token in everyone if token.normalized}
        )

    def split(self, text: str, allow_special: bool = True, literal: Collection[int] = ()) -> list[Piece]:
        """Normalized text and ids, in order; with `allow_special=False` special tokens are text like any other.

        literal: positions in `text`, in characters, that no token may cover.
        """
        if self._raw.is_absent(text) and not self._normalized.tokens:  # most texts, at the speed of `in`
            changed = self._normalize(text)
            return [changed] if changed else []
        pieces: list[Piece] = []
        runs = _runs(literal)
        for piece in self._raw.split(text, allow_special, runs):
            if isinstance(piece, int):
                pieces.append(piece)
            else:
                part = text[piece.start : piece.stop]
                changed = self._normalize(part)
                moved: Sequence[slice] = ()
                if runs and self._normalized.tokens:
                    moved = _moved(_inside(runs, piece), part, changed, self._normalize)
                for span in self._normalized.split(changed, allow_special, moved):
                    pieces.append(span if isinstance(span, int) else changed[span.start : span.stop])
        return pieces


class _Finder:
    """Finds a set of strings, leftmost and longest."""

    def __init__(self, tokens: dict[str, AddedToken]) -> None:
        self.tokens = tokens
        # What all of them begin with, mostly "<|": a text without it has none of them.
        self._common_prefix = _common_prefix(list(tokens))
        longest_first = sorted(tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def is_absent(self, text: str) -> bool:
        """Whether a text surely holds none of them."""
        return not self.tokens or self._common_prefix not in text

    def split(self, text: str, allow_special: bool, literal: Sequence[slice]) -> Iterator[slice | int]:
        """Where text stands between matches, and the ids of the matches; none reaches into one of the `literal` runs."""
        if self.is_absent(text):
            if text:
                yield slice(0, len(text))
            return
        position = 0
        for match in self._matches(text, literal):
            token = self.tokens[match.group()]
            start, stop = match.span()
            if token.special and not allow_special:
                continue
            if token.single_word and (_is_word(text[:start][-1:]) or _is_word(text[stop : stop + 1])):
                continue
            if token.lstrip:
                start = len(text[:start].rstrip(SPACES))
            if token.rstrip:
                stop = len(text) - len(text[stop:].lstrip(SPACES))
            if position < start:  # not so where the token before has taken the space between
                yield slice(position, start)
            yield token.id
            position = stop
        if position < len(text):
            yield slice(position, len(text))

    def _matches(self, text: str, literal: Sequence[slice]) -> Iterator[re.Match[str]]:
        """The matches between the `literal` runs of a text."""
        position = 0
        for run in literal:
            yield from self._pattern.finditer(text, position, run.start)
            position = run.stop
        yield from self._pattern.finditer(text, position)


def _runs(positions: Collection[int]) -> list[slice]:
    """Positions as runs of neighbours, in order."""
    runs: list[slice] = []
    for position in sorted(positions):
        if runs and position <= runs[-1].stop:
            runs[-1] = slice(runs[-1].start, max(position + 1, runs[-1].stop))
        else:
            runs.append(slice(position, position + 1))
    return runs


def _inside(runs: Sequence[slice], piece: slice) -> list[slice]:
    """The parts of runs that lie in a piece of the text, as places in that piece."""
    clipped = [slice(max(run.start, piece.start), min(run.stop, piece.stop)) for run in runs]
    return [slice(run.start - piece.start, run.stop - piece.start) for run in clipped if run.start < run.stop]


def _moved(runs: list[slice], part: str, changed: str, normalize: Callable[[str], str]) -> list[slice]:
    """The runs of a text, where they stand in its normalized form: rather too wide than too narrow.

    A run begins where the text before it, normalized for itself, first differs from `changed`, and ends likewise from behind.
    """
    if part == changed:
        return runs
    moved = []
    for run in runs:
        start = len(_common_prefix([normalize(part[: run.start]), changed]))
        after = len(_common_prefix([normalize(part[run.stop :])[::-1], changed[::-1]]))
        moved.append(slice(start, max(start, len(changed) - after)))
    return moved


def _common_prefix(texts: list[str]) -> str:
    """What all texts begin with: as far as the first and the last of them in order agree."""
    first, last = min(texts, default=""), max(texts, default="")
    same = [a == b for a, b in zip(first, last, strict=False)]
    return first[: [*same, False].index(False)]


def _is_word(character: str) -> bool:
    """Whether a character (or nothing, at an end of the text) is part of a word."""
    return bool(character) and regex.match(r"\w", hide_newer_characters(character)) is not None
