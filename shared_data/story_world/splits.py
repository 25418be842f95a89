"""Which stories belong to which split: combinations are held out, not only seeds.

A combination is (hero, place, main thing). A stable hash puts each into one of ten buckets; eight are for training, one
for validation, one for test. So every name, place and thing is seen in training, but a validation story combines a hero,
a thing and a place that never came together in training.

The three parts are drawn one after the other, each uniformly among those that can still be completed:

    p(hero) = 1 / |heroes|      p(place | hero) = 1 / |places of hero|      p(thing | hero, place) = 1 / |things of both|

which conditions the probability of a story on its split. A model that does not know which
combinations are held out pays at most log2(10) = 3.3 bits a story for it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from shared_data.errors import UserError
from shared_data.story_world.grammar import Choice
from shared_data.story_world.lexicon import Lexicon, Word

SPLITS = ("train", "validation", "test")


def split_of(*parts: str) -> str:
    """The split of a combination of words: 80 % train, 10 % validation, 10 % test, the same on every machine."""
    bucket = zlib.crc32("/".join(parts).encode()) % 10
    return "train" if bucket < 8 else "validation" if bucket == 8 else "test"


def check_split(split: str) -> str:
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}; use one of {', '.join(SPLITS)}")
    return split


@dataclass
class Combinations:
    """The combinations of one split, as three choices in a row."""

    lexicon: Lexicon
    split: str
    _things: dict[tuple[Word, Word], list[Word]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_split(self.split)
        self._things = {
            (hero, place): things
            for hero in self.lexicon.heroes
            for place in self.lexicon.places
            if (things := [t for t in self.lexicon.things if split_of(hero, place, t) == self.split])
        }
        places = {
            hero: [p for p in self.lexicon.places if (hero, p) in self._things]
            for hero in self.lexicon.heroes
        }
        heroes = [hero for hero in self.lexicon.heroes if places[hero]]
        self.hero = silent("hero", heroes)
        self.place = {hero: silent("place", places[hero]) for hero in heroes}
        self.thing = {pair: silent("thing", things) for pair, things in self._things.items()}


def silent(key: str, words: Sequence[Word]) -> Choice:
    """A choice without text of its own; the text shows it where the word is used."""
    return Choice(key, [()] * len(words), None, key, list(words))
