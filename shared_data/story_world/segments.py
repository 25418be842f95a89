"""Which kind of segment each letter of a story belongs to: its wording, a name, a place, an object, a feeling, …

The grammar says what each letter comes from: fixed words, a draw from a list, or a slot, which repeats what the state knows. From this
follow a dozen kinds a reader understands (`KINDS`). What is told for the first time and what is told again are kinds of their own:
the first cannot be foreseen, the second can be copied from what stands before. Theory: segments.md.

    uv run python -c "from shared_data.story_world.segments import *; [print(repr(text), kind) for text, kind in spans_of(next(StoryWorld().stories(4)).text)]"
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from shared_data.errors import UserError
from shared_data.story_world.lexicon import FEELINGS
from shared_data.story_world.pieces import Piece
from shared_data.story_world.splits import SPLITS
from shared_data.story_world.world import StoryWorld

# Each kind with an example of it.
KINDS = {
    "wording": "Once upon a time, there lived",
    "name": "Finn, at its first mention",
    "name again": "Finn, at every later one",
    "pronoun": "he, her",
    "place": "the castle, next to the well",
    "object": "pillow, nest, black ducks, a sailor",
    "object again": "the pillow, the nest",
    "description": "rabbit, friendly, large, silver, climb trees",
    "feeling": "proud",
    "number": "four, five",
    "time": "cold, Friday, morning",
    "manner": "calmly, whispered",
    "question": "Who has the pillow now?",
    "answer": "The holder of the pillow is Olga.",
}

# The labels of the choices whose letters are of a kind (lexicon.py); those of any other choice are wording.
_LABELS = {
    "place": ("home", "spot"),
    "object": ("trinket", "food", "countable", "building", "material", "stranger", "noise"),
    "description": (
        *("hero_kind", "friend_kind", "trait", "build", "hobby"),
        *("size", "thing_look", "colour", "look", "taste", "loud", "mood"),
    ),
    "feeling": tuple(FEELINGS),
    "number": ("number", "more_number"),
    "time": ("weather", "daypart", "weekday"),
    "manner": ("manner", "gladly", "sadly", "said", "sobbed"),
}
_KIND_OF_LABEL = {label: kind for kind, labels in _LABELS.items() for label in labels}
# What the state holds under a key is repeated by slots; for names the key says whom it stands for.
_KIND_OF_SLOT = {
    **dict.fromkeys(("hero", "friend", "A", "B"), "name"),
    **dict.fromkeys(("thing", "trinket", "building", "stranger"), "object"),
    "place": "place",
    "total": "number",
}
_PRONOUNS = ("he", "him", "his", "He", "His")


class Span(NamedTuple):
    """Characters [start, end) of a text, and their kind, one of `KINDS`."""

    start: int
    end: int
    kind: str


def segments(text: str) -> list[Span]:
    """The kinds of all characters of a story, or of a story with a question and perhaps, on the next line, its answer.

    The spans follow each other without a gap, and neighbours differ in kind. No spans for a text that does not begin with a story of the
    world. Takes a few milliseconds: the story is parsed.
    """
    story, mark, asked = text.partition("\nQuestion: ")
    question, newline, answer = asked.partition("\n")
    parts = list(_story_parts(story))
    if not parts:
        return []
    return _joined([*parts, (mark + question, "question"), (newline + answer, "answer")])


def spans_of(text: str) -> list[tuple[str, str]]:
    """The same as pairs of letters and kind, to look at."""
    return [(text[span.start : span.end], span.kind) for span in segments(text)]


def token_kinds(
    text: str, spans: Sequence[Span], byte_lengths: Int[np.ndarray, " V"], ids: Sequence[int]
) -> list[str]:
    """The kind of each token of a text: that of most of its bytes; of equally many, the later, since a blank belongs to the word after it.

    byte_lengths: the bytes of each id of the vocabulary. Raises `UserError` where the tokens are not exactly the bytes of the text.
    """
    of_byte = list(
        chain.from_iterable(repeat(kind, len(text[start:end].encode())) for start, end, kind in spans)
    )
    ends = np.cumsum(byte_lengths[np.asarray(ids, dtype=np.int64)]).tolist()
    if not ids or ends[-1] != len(of_byte):
        raise UserError(
            f"{ends[-1] if ids else 0} bytes of tokens stand for a text of {len(of_byte)}; use a byte-level tokenizer that changes no text"
        )
    kinds = []
    for start, end in zip([0, *ends], ends, strict=False):
        own = of_byte[start:end]
        kinds.append(max(dict.fromkeys(reversed(own)), key=own.count))
    return kinds


def _story_parts(story: str) -> Iterator[tuple[str, str]]:
    """The letters of a story with their kinds, piece by piece; nothing for another text."""
    for split in SPLITS:
        try:
            derivation = _world().derivations(story, split)[0]
        except UserError:
            continue
        told: set[tuple[str, object]] = set()
        for piece in _world().pieces(derivation, split):
            yield piece.letters, _kind_of(piece, told)
        return


def _kind_of(piece: Piece, told: set[tuple[str, object]]) -> str:
    """The kind of a piece; `told` remembers what the story has said so far."""
    if piece.label:
        told.add((piece.key, piece.value))
        return _KIND_OF_LABEL.get(piece.label, "wording")
    if piece.form in _PRONOUNS:
        return "pronoun"
    if piece.key not in _KIND_OF_SLOT:
        return "wording"
    kind = _KIND_OF_SLOT[piece.key]
    what = ("name" if kind == "name" else piece.key, piece.value)
    again = what in told and f"{kind} again" in KINDS
    told.add(what)
    return f"{kind} again" if again else kind


def _joined(parts: Sequence[tuple[str, str]]) -> list[Span]:
    """Spans of neighbouring parts, those of one kind as one."""
    spans: list[Span] = []
    end = 0
    for letters, kind in parts:
        start, end = end, end + len(letters)
        if spans and spans[-1].kind == kind:
            spans[-1] = Span(spans[-1].start, end, kind)
        elif letters:
            spans.append(Span(start, end, kind))
    return spans


@lru_cache(maxsize=1)
def _world() -> StoryWorld:
    return StoryWorld()
