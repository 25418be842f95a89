"""Added tokens: the strings that are found in text before BPE sees it, `<|endoftext|>` among them.

They never come out of merging. The text is searched for all of them at once, the leftmost match wins and the longest of
those that begin at one place; the text between matches goes on to BPE. A token may be `special` (skipped in decoding on
request, and ignored where text is not trusted), match only as a whole word (`single_word`), or take white space with it
(`lstrip`, `rstrip`); unless `normalized` is false, it is looked for in the normalized text.

Level 1: `tokenizers.AddedToken`.

    uv run python -c "from shared_data.tokenizer.added_tokens import *; print(AddedTokens([AddedToken(7, '<|x|>')]).split('a<|x|>b'))"
"""

import re
from collections.abc import Callable, Iterable, Iterator
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

    def split(self, text: str, allow_special: bool = True, allow_added: bool = True) -> list[Piece]:
        """Normalized text and ids, in order; with `allow_special=False` special tokens are text like any other, or all added ones."""
        if not allow_added:
            return [self._normalize(text)]
        pieces: list[Piece] = []
        for piece in self._raw.split(text, allow_special):
            if isinstance(piece, int):
                pieces.append(piece)
            else:
                pieces += self._normalized.split(self._normalize(piece), allow_special)
        return pieces


class _Finder:
    """Finds a set of strings, leftmost and longest."""

    def __init__(self, tokens: dict[str, AddedToken]) -> None:
        self._tokens = tokens
        # What all of them begin with, mostly "<|": a text without it is done, at the speed of `in`.
        self._common_prefix = _common_prefix(list(tokens))
        longest_first = sorted(tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def split(self, text: str, allow_special: bool) -> Iterator[Piece]:
        """Text between matches, and the ids of the matches."""
        if not self._tokens or self._common_prefix not in text:
            if text:
                yield text
            return
        position = 0
        for match in self._pattern.finditer(text):
            token = self._tokens[match.group()]
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
                yield text[position:start]
            yield token.id
            position = stop
        if position < len(text):
            yield text[position:]


def _common_prefix(texts: list[str]) -> str:
    """What all texts begin with: as far as the first and the last of them in order agree."""
    first, last = min(texts, default=""), max(texts, default="")
    same = [a == b for a, b in zip(first, last, strict=False)]
    return first[: [*same, False].index(False)]


def _is_word(character: str) -> bool:
    """Whether a character (or nothing, at an end of the text) is part of a word."""
    return bool(character) and regex.match(r"\w", hide_newer_characters(character)) is not None
