"""The story world: draw stories without end, and compute exactly how probable a text is.

    log2 p(text | split) = log2 of the sum over derivations d of text of  prod over choices c in d of  p(c)

(the full world has one derivation per text). The mean of `-log2 p` over stories is the entropy, which no language model
can beat; divided by the mean number of bytes it is the floor in bits per byte. All three levels report against it.

Run: `python -m shared_data.story_world --seed 1 --count 2`
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from shared_data.errors import UserError
from shared_data.story_world.events import EVENTS
from shared_data.story_world.facts import Facts, facts_from_state
from shared_data.story_world.grammar import (
    Derivation,
    State,
    enumerate_all,
    parse,
    sample,
    total_log2_probability,
)
from shared_data.story_world.lexicon import Lexicon
from shared_data.story_world.pieces import Piece, spell_out
from shared_data.story_world.plot import Plot
from shared_data.story_world.splits import check_split


@dataclass(frozen=True)
class Story:
    """A story, how probable it was in bits, and the state of its world at the end."""

    text: str
    log2_probability: float  # conditional on the split
    split: str
    state: State = field(repr=False, compare=False)

    @cached_property
    def facts(self) -> Facts:
        """What is true in the story, as the tasks use it."""
        return facts_from_state(self.state)


class StoryWorld:
    """All stories of a lexicon. `StoryWorld()` is the full world, `StoryWorld.small()` one that can be enumerated."""

    def __init__(
        self,
        lexicon: Lexicon | None = None,
        phrasings: int | None = None,
        events: Collection[str] = tuple(EVENTS),
        most_events: int = 3,
    ) -> None:
        self._lexicon = lexicon or Lexicon.full()
        self._settings = (phrasings, events, most_events)
        self._plots: dict[str, Plot] = {}

    @classmethod
    def small(cls) -> StoryWorld:
        """One word a list, one phrasing a beat, a handful of events: twenty thousand stories, all different."""
        events = ("find", "give", "lose", "search", "return", "count")
        return cls(
            Lexicon.shrunk(combinations=3, words=1), phrasings=1, events=(*events, "plan"), most_events=3
        )

    def _plot(self, split: str) -> Plot:
        if split not in self._plots:
            self._plots[split] = Plot(self._lexicon, check_split(split), *self._settings)
        return self._plots[split]

    def stories(self, seed: int = 0, split: str = "train") -> Iterator[Story]:
        """Stories without end, the same ones for the same seed on every machine."""
        plot = self._plot(split)
        uniform = random.Random(f"{seed}/{split}").random
        while True:
            derivation = sample(plot.start, plot.new_state(), uniform)
            yield Story(derivation.text, derivation.log2_probability, split, derivation.state)

    def log2_probability(self, text: str, split: str = "train") -> float:
        """The exact log2 probability of drawing this text, from the text alone.

        Raises `UserError` (a `ValueError`) if this is no story of the split: its probability is zero.
        """
        return total_log2_probability(self.derivations(text, split))

    def read(self, text: str, split: str = "train") -> Story:
        """The story behind a text: its probability and its facts, from the text alone. Raises as `log2_probability`."""
        derivations = self.derivations(text, split)
        return Story(text, total_log2_probability(derivations), split, derivations[0].state)

    def derivations(self, text: str, split: str = "train") -> list[Derivation]:
        plot = self._plot(split)
        found = parse(plot.start, plot.new_state(), text)
        if not found:
            raise UserError(
                f"this is not a story of the {split} split: {text[:60]!r}…; give a whole story, letter by letter, and its split"
            )
        return found

    def pieces(self, derivation: Derivation, split: str = "train") -> Iterator[Piece]:
        """The letters of a derivation one after another, each with what it comes from."""
        plot = self._plot(split)
        return spell_out(plot.start, plot.new_state(), derivation.steps)

    def enumerate(self, split: str = "train") -> Iterator[Story]:
        """Every story of the world once per derivation; only for small worlds."""
        plot = self._plot(split)
        for derivation in enumerate_all(plot.start, plot.new_state()):
            yield Story(derivation.text, derivation.log2_probability, split, derivation.state)
