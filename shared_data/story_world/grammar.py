"""A probabilistic grammar with memory: one description of the stories, read in three ways.

A story is a sequence of *segments*. A segment is one of five things:

- a `str`: these very letters;
- a `Slot`: letters that the state already knows ("the name of the hero");
- a `Choice`: several ways to go on, each with its probability; this is the only place where chance enters;
- a `Depends`: the choice that belongs to what the state holds (the hiding spots of *this* place);
- a function of the state: it may change the state, and returns the segments that come next.

The same segments are then read by three short interpreters, which is why the entropy of the world is known exactly:

- `sample` draws at every choice and adds up `-log2 p`;
- `parse` follows only those options that agree with a given text, so it recovers every choice from the text alone;
- `enumerate_all` follows every option, which is how a test shows that the probabilities sum to 1.

Where several derivations give one text, its probability is their sum: `parse` returns all of them.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

State = dict[str, Any]


class Slot(NamedTuple):
    """The letters of `state[key]`, or of one of its forms (`{hero.he}` is `state["hero"].he`)."""

    key: str
    form: str | None = None

    def read(self, state: State) -> str:
        value = state[self.key]
        return value if self.form is None else getattr(value, self.form)


class Option(NamedTuple):
    """One way to go on: its text, its change of the state, and its probability."""

    segments: tuple[Segment, ...]
    probability: float
    bits: float  # -log2(probability)
    key: str | None = None  # when set, taking the option does state[key] = value
    value: Any = None


class Choice:
    """A draw among options, uniform unless weights are given."""

    __slots__ = ("cumulative", "label", "options")

    def __init__(
        self,
        label: str,
        branches: Sequence[Sequence[Segment]],
        weights: Sequence[float] | None = None,
        key: str | None = None,
        values: Sequence[Any] | None = None,
    ) -> None:
        assert branches, f"the choice {label!r} has no options"
        total = sum(weights) if weights else len(branches)
        shares = [weight / total for weight in weights] if weights else [1 / total] * len(branches)
        values = values or [None] * len(branches)
        self.label = label
        self.options = [
            Option(tuple(segments), share, -math.log2(share), key, value)
            for segments, share, value in zip(branches, shares, values, strict=True)
        ]
        self.cumulative = list(accumulate(shares)) if weights else None

    def draw(self, number: float) -> Option:
        """The option at `number`, which is uniform in [0, 1)."""
        if self.cumulative is None:
            return self.options[int(number * len(self.options))]
        # Rounding may leave the last cumulative sum a hair under 1, hence the minimum.
        return self.options[min(bisect_right(self.cumulative, number), len(self.options) - 1)]


class Depends(NamedTuple):
    """The choice that belongs to the value of `state[key]`."""

    key: str
    table: Mapping[Any, Choice]


Segment = str | Slot | Choice | Depends | Callable[[State], "tuple[Segment, ...]"]


class Given(NamedTuple):
    """In a lexicon: a list of words for each value of `state[key]`."""

    key: str
    table: Mapping[Any, Any]


class Step(NamedTuple):
    """One choice that was made: where in the text it took effect, what it cost, and which option was taken."""

    label: str
    bits: float
    position: int
    option: Option


@dataclass
class Derivation:
    """One complete way through the grammar."""

    text: str
    bits: float
    state: State
    steps: list[Step] = field(default_factory=list)

    @property
    def log2_probability(self) -> float:
        return -self.bits


def sample(start: Sequence[Segment], state: State, uniform: Callable[[], float]) -> Derivation:
    """Draw a text: `uniform()` returns a fresh number in [0, 1) for each choice. `state` is changed in place."""
    agenda = list(reversed(start))  # a stack: what is still to be said, the next segment on top
    pieces: list[str] = []
    bits = 0.0
    while agenda:
        segment = agenda.pop()
        kind = type(segment)
        if kind is str:
            pieces.append(segment)
            continue
        if kind is Slot:
            pieces.append(segment.read(state))
            continue
        if kind is Depends:
            segment, kind = segment.table[state[segment.key]], Choice
        if kind is Choice:
            segments, _, cost, key, value = segment.draw(uniform())
            bits += cost
            if key is not None:
                state[key] = value
            agenda += segments[::-1]
        else:
            agenda += segment(state)[::-1]
    return Derivation("".join(pieces), bits, state)


def _push(segments: Sequence[Segment], agenda: tuple) -> tuple:
    """Agendas of a search are linked lists `(segment, rest)`, so that branches share their common rest."""
    for segment in reversed(segments):
        agenda = (segment, agenda)
    return agenda


class _Branch(NamedTuple):
    """A derivation under way: what is still to be said, and what was said and chosen so far."""

    agenda: tuple
    state: State
    said: str
    bits: float
    steps: tuple  # a linked list (step, earlier steps), newest first


def _search(start: Sequence[Segment], state: State, text: str | None) -> Iterator[Derivation]:
    """Walk depth first through every derivation, or through those that say exactly `text`."""

    def agrees(letters: str, said: str) -> bool:
        return text is None or text.startswith(letters, len(said))

    branches = [_Branch(_push(start, ()), dict(state), "", 0.0, ())]
    while branches:
        agenda, state, said, bits, steps = branches.pop()
        while agenda:
            segment, agenda = agenda
            if isinstance(segment, Depends):
                segment = segment.table[state[segment.key]]
            if isinstance(segment, (str, Slot)):
                letters = segment if isinstance(segment, str) else segment.read(state)
                if not agrees(letters, said):
                    break
                said += letters
            elif isinstance(segment, Choice):
                for option in reversed(segment.options):
                    first = option.segments[0] if option.segments else None
                    if isinstance(first, str) and not agrees(first, said):
                        continue  # most options end here, before anything is copied
                    step = Step(segment.label, option.bits, len(said), option)
                    taken = {**state, option.key: option.value} if option.key is not None else dict(state)
                    branches.append(
                        _Branch(
                            _push(option.segments, agenda), taken, said, bits + option.bits, (step, steps)
                        )
                    )
                break
            else:
                agenda = _push(segment(state), agenda)
        else:  # nothing is left to be said
            if text is None or len(said) == len(text):
                yield Derivation(said, bits, state, _in_order(steps))


def _in_order(steps: tuple) -> list[Step]:
    """A linked list, newest first, as a list, oldest first."""
    ordered = []
    while steps:
        step, steps = steps
        ordered.append(step)
    return ordered[::-1]


def parse(start: Sequence[Segment], state: State, text: str) -> list[Derivation]:
    """Every derivation of `text`: none if the text is not of the language, one if the grammar is unambiguous."""
    return list(_search(start, state, text))


def enumerate_all(start: Sequence[Segment], state: State) -> Iterator[Derivation]:
    """Every derivation of a (small!) grammar, each once."""
    return _search(start, state, None)


def total_log2_probability(derivations: Sequence[Derivation]) -> float:
    """log2 of the summed probabilities of several derivations of one text, without underflow."""
    least = min(derivation.bits for derivation in derivations)
    return math.log2(sum(2.0 ** (least - derivation.bits) for derivation in derivations)) - least


# ---------------------------------------------------------------------------------------------------------------------
# Templates: how people write segments.

_TEMPLATE = re.compile(
    r"\{(?P<slot>\w+)(?:\.(?P<slot_form>\w+))?\}"  # {hero.he}: what the state knows
    r"|\[(?P<list>\w+)(?:\.(?P<list_form>\w+))?(?::(?P<bind>\w+))?\]"  # [colour.a:shade]: a draw, kept as state["shade"]
    r"|\((?P<alternatives>[^()]*)\)"  # (very|quite): a draw nobody needs to remember
)


def compile_template(
    template: str, lists: Mapping[str, Any], limit: int | None = None
) -> tuple[Segment, ...]:
    """Turn "{hero} saw [colour.a] {thing} (there|nearby)." into segments.

    `lists[name]` is a sequence of strings (drawn uniformly), a `Given` (words for each value of
    `state[key]`), a mapping from string to weight, or, for a `{slot}`, a function that computes it. `limit` keeps the first few of the `(…|…)` alternatives.
    """
    segments: list[Segment] = []
    end = 0
    for match in _TEMPLATE.finditer(template):
        if match.start() > end:
            segments.append(template[end : match.start()])
        end = match.end()
        if match["slot"] and callable(lists.get(match["slot"])):
            segments.append(lists[match["slot"]])
        elif match["slot"]:
            segments.append(Slot(match["slot"], match["slot_form"]))
        elif match["list"]:
            name = match["list"]
            segments.append(_draw_from(name, lists[name], match["list_form"], match["bind"] or name))
        else:
            alternatives = match["alternatives"].split("|")[:limit]
            branches = [compile_template(alternative, lists, limit) for alternative in alternatives]
            segments.append(Choice("wording", branches))
    if end < len(template):
        segments.append(template[end:])
    return tuple(segments)


def _draw_from(name: str, entries: Any, form: str | None, key: str) -> Choice | Depends:
    if isinstance(entries, Given):
        choices = {value: _draw_from(name, words, form, key) for value, words in entries.table.items()}
        return Depends(entries.key, choices)  # type: ignore[arg-type]
    words = list(entries)
    # str(): a word with forms is a subclass of str, while literal segments must be plain strings.
    branches = [(str(word) if form is None else getattr(word, form),) for word in words]
    weights = list(entries.values()) if isinstance(entries, Mapping) else None
    return Choice(name, branches, weights, key, words)
