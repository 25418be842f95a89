"""A dirty corpus whose dirt is known: clean stories mixed with the kinds of dirt that web text has.

Cleaning and deduplication are scored against these labels, so the truth must be unambiguous:

| label | what it is | what a cleaner should do |
|---|---|---|
| `clean` | a story | keep it unchanged |
| `exact_duplicate` | an earlier story again | drop it (`duplicate_of`) |
| `near_duplicate` | an earlier story with one or two words changed | drop it (`duplicate_of`) |
| `markup` | a story wrapped in HTML | repair it: strip tags, decode entities |
| `mojibake` | UTF-8 read as Windows-1252 ("donâ€™t") | repair it |
| `control_characters` | zero-width, bell and other control characters strewn in | repair it |
| `whitespace` | doubled blanks, tabs, trailing blanks, Windows line ends | repair it |
| `boilerplate` | a story between lines of navigation and cookie banners | repair it: drop those lines |
| `advertisement` | nothing but such lines | drop it |
| `too_short` | one sentence or less | drop it |
| `other_language` | German, French or Spanish sentences | drop it |
| `repetition` | one sentence again and again | drop it |

A repairable document carries `expected_text`, what is left after the repair; a document to drop carries `None`.
Two independent stories never come near a near duplicate: see the README for the distribution of their similarity.

Two traps that real text has as well: repair mojibake *before* removing control characters (the closing quote ” misread
holds U+009D), and keep the curly quotes that the repair restores.

    >>> documents = dirty_documents(seed=0)
    >>> next(documents).label in LABELS
    True
"""

from __future__ import annotations

import html
import random
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shared_data.errors import UserError
from shared_data.story_world.foreign import FOREIGN_SENTENCES
from shared_data.story_world.lexicon import FOODS, MANNERS, WEATHER
from shared_data.story_world.world import StoryWorld

REPAIRS = ("markup", "mojibake", "control_characters", "whitespace", "boilerplate")
DROPS = ("exact_duplicate", "near_duplicate", "advertisement", "too_short", "other_language", "repetition")
LABELS = ("clean", *REPAIRS, *DROPS)
MEMORY = 1000  # a duplicate repeats one of the last so many stories, so that streaming needs little memory

BOILERPLATE = (
    "Home | About us | Contact | Sitemap",
    "Click here to subscribe to our newsletter!",
    "This website uses cookies to improve your experience. Accept all cookies",
    "Copyright 2024 All rights reserved.",
    "Share this page on social media",
    "Log in or sign up to leave a comment",
    "Privacy policy | Terms of use | Imprint",
    "Read more >>",
    "Skip to main content",
    "Enable JavaScript to view this page.",
)
NEAR = 0.85  # the least Jaccard similarity of a near duplicate and its original, over word 5-grams
_OTHER_WORDS = [*map(str, MANNERS), *map(str, WEATHER), "maybe", "there", "then", "again", "never", "always"]
_CONTROL = "\x00\x07\x08\x1b\x7f\u200b\ufeff"


@dataclass(frozen=True)
class DirtyDocument:
    """One document of the corpus and the truth about it."""

    id: str
    text: str
    label: str  # one of LABELS
    duplicate_of: str | None = None  # the id of the clean document it repeats
    expected_text: str | None = None  # what cleaning should leave; None: it should be dropped

    @property
    def should_drop(self) -> bool:
        return self.expected_text is None


# --- repairable: (dirty text, expected text) from a clean one ---


def _markup(text: str, rng: random.Random) -> tuple[str, str]:
    first, *rest = text.split(". ")
    emphasised = f"<b>{html.escape(first)}</b>" if rng.random() < 0.5 else html.escape(first)
    body = ". ".join([emphasised, *map(html.escape, rest)])
    wrapping = rng.choice(('<p class="story">{}</p>', "<div><p>{}</p></div>", "<html><body>{}</body></html>"))
    return wrapping.format(body), text


def typographic(text: str) -> str:
    """Curly quotation marks and apostrophes instead of straight ones, as typesetters set them."""
    pieces = text.split('"')
    return "".join(piece + ("“" if i % 2 == 0 else "”") for i, piece in enumerate(pieces[:-1])) + pieces[-1]


def _mojibake(text: str, rng: random.Random) -> tuple[str, str]:
    """The story is set with curly quotes and a dash first, since plain ASCII cannot be misread."""
    expected = typographic(text) + rng.choice(
        (" — The End…", " – And that’s all…", " — as told in the café…")
    )
    # Windows-1252 leaves five bytes undefined; everyone reads those as the control characters of Latin-1.
    misread = "".join(
        bytes([byte]).decode("cp1252", errors="ignore") or chr(byte) for byte in expected.encode("utf-8")
    )
    return misread, expected


def _control_characters(text: str, rng: random.Random) -> tuple[str, str]:
    letters = list(text)
    for _ in range(rng.randint(2, 6)):
        letters.insert(rng.randrange(len(letters)), rng.choice(_CONTROL))
    return "".join(letters), text


def _whitespace(text: str, rng: random.Random) -> tuple[str, str]:
    words = text.split(" ")
    dirty = "".join(word + rng.choice((" ", " ", " ", "  ", "   ", "\t", "\u00a0")) for word in words)
    return rng.choice(("  ", "\r\n", "\n\n\n")) + dirty + rng.choice(("  \r\n", "\n\n\n", " \t")), text


def _boilerplate(text: str, rng: random.Random) -> tuple[str, str]:
    lines = rng.sample(BOILERPLATE, rng.randint(2, 4))
    place = rng.randint(0, len(lines))
    return "\n".join([*lines[:place], text, *lines[place:]]), text


_REPAIRABLE: dict[str, Callable[[str, random.Random], tuple[str, str]]] = {
    "markup": _markup,
    "mojibake": _mojibake,
    "control_characters": _control_characters,
    "whitespace": _whitespace,
    "boilerplate": _boilerplate,
}

# --- to be dropped ---


def shingles(text: str, words: int = 5) -> frozenset[tuple[str, ...]]:
    """The sets of `words` words in a row, by which near duplicates are judged."""
    tokens = re.findall(r"\w+", text.lower())
    return frozenset(tuple(tokens[i : i + words]) for i in range(max(1, len(tokens) - words + 1)))


def jaccard(first: str, second: str) -> float:
    """Shared shingles over all shingles of two texts."""
    a, b = shingles(first), shingles(second)
    return len(a & b) / len(a | b)


def near_duplicate(text: str, rng: random.Random) -> str:
    """The text with a word or two exchanged, but still with at least `NEAR` of its shingles in common."""
    while True:
        words = text.split(" ")
        for _ in range(rng.choice((1, 2))):
            words[rng.randrange(len(words))] = rng.choice(_OTHER_WORDS)
        changed = " ".join(words)
        if changed != text and jaccard(text, changed) >= NEAR:
            return changed


def _advertisement(rng: random.Random) -> str:
    return "\n".join(rng.sample(BOILERPLATE, rng.randint(3, 6)))


def _too_short(rng: random.Random) -> str:
    food, weather, manner = rng.choice(FOODS), rng.choice(WEATHER), rng.choice(MANNERS)
    return rng.choice(
        ("…", f"A {weather} day.", f"They ate {food.a}.", f"They {manner} went home.", "Untitled")
    )


def _other_language(rng: random.Random) -> str:
    language = rng.choice(list(FOREIGN_SENTENCES))
    return " ".join(rng.sample(FOREIGN_SENTENCES[language], rng.randint(5, 8)))


def _repetition(text: str, rng: random.Random) -> str:
    spoken_by_nobody = [sentence for sentence in text.split(". ")[:-1] if '"' not in sentence]
    return " ".join([f"{rng.choice(spoken_by_nobody)}."] * rng.randint(8, 15))


_UNRELATED: dict[str, Callable[[random.Random], str]] = {
    "advertisement": _advertisement,
    "too_short": _too_short,
    "other_language": _other_language,
}


def dirty_documents(
    seed: int = 0, split: str = "train", dirt_fraction: float = 0.3, world: StoryWorld | None = None
) -> Iterator[DirtyDocument]:
    """Documents without end. A share of `dirt_fraction` is dirty, each kind of dirt equally often.

    Raises `UserError` if the fraction is not in [0, 1].
    """
    if not 0 <= dirt_fraction <= 1:
        raise UserError(
            f"dirt_fraction is {dirt_fraction}; give a number from 0 (all clean) to 1 (all dirty)"
        )
    rng = random.Random(f"dirt/{seed}/{split}")
    # (id, text) of clean stories that a duplicate may repeat.
    earlier: deque[tuple[str, str]] = deque(maxlen=MEMORY)
    for number, story in enumerate((world or StoryWorld()).stories(seed, split)):
        name = f"{split}-{seed}-{number}"
        label = rng.choice(LABELS[1:]) if rng.random() < dirt_fraction else "clean"
        if label.endswith("_duplicate") and not earlier:
            label = "clean"  # nothing to repeat yet
        if label == "clean":
            earlier.append((name, story.text))
            yield DirtyDocument(name, story.text, label, expected_text=story.text)
        elif label in _REPAIRABLE:
            dirty, expected = _REPAIRABLE[label](story.text, rng)
            yield DirtyDocument(name, dirty, label, expected_text=expected)
        elif label.endswith("_duplicate"):
            original, text = earlier[rng.randrange(len(earlier))]
            repeated = text if label == "exact_duplicate" else near_duplicate(text, rng)
            yield DirtyDocument(name, repeated, label, duplicate_of=original)
        else:
            text = _repetition(story.text, rng) if label == "repetition" else _UNRELATED[label](rng)
            yield DirtyDocument(name, text, label)
