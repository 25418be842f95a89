"""What each letter of a story comes from: fixed words, a draw from a list, or a slot that repeats what the state knows.

`parse` (grammar.py) recovers the options that were taken; here they are taken once more, so nothing is searched.

    uv run python -c "from shared_data.story_world.pieces import *; from shared_data.story_world.grammar import *; start = compile_template('A [pet], the {pet}.', {'pet': ['cat', 'dog']}); print(*spell_out(start, {}, parse(start, {}, 'A dog, the dog.')[0].steps), sep='\\n')"
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from shared_data.story_world.grammar import Choice, Depends, Segment, Slot, State, Step


class Piece(NamedTuple):
    """Letters of a derivation, and what they come from."""

    letters: str
    key: str  # of the state: what a slot reads, or what a choice sets; "" for letters that the state does not keep
    label: str  # of the choice that these letters are an option of; "" for a slot
    form: str | None = None  # of a slot
    value: Any = None  # of that key


def spell_out(start: Sequence[Segment], state: State, steps: Sequence[Step]) -> Iterator[Piece]:
    """The letters of a derivation in order, by taking the options of its steps once more. `state` is changed in place."""
    taken = iter(steps)
    agenda: list[tuple[Segment, Step | None]] = [(segment, None) for segment in reversed(start)]
    while agenda:
        segment, step = agenda.pop()
        if isinstance(segment, str):
            key, value = (step.option.key or "", step.option.value) if step else ("", None)
            yield Piece(segment, key, step.label if step else "", value=value)
        elif isinstance(segment, Slot):
            yield Piece(segment.read(state), segment.key, "", segment.form, state[segment.key])
        elif isinstance(segment, Choice | Depends):
            step = next(taken)
            if step.option.key is not None:
                state[step.option.key] = step.option.value
            agenda += [(part, step) for part in reversed(step.option.segments)]
        else:
            agenda += [(part, step) for part in reversed(segment(state))]
