"""The bookkeeping of a beam search: which continuations are finished, which go on, when nothing better can come.

A level computes log-probabilities and hands over the best continuations of all beams; here they are sorted into *finished* hypotheses
and *running* beams. The rules are those of transformers' beam search (5.x). Theory: v2_handwritten/inference/beam_search.md.

    uv run python -c "from shared_data.inference.beams import *; b = Beams([5], 2, 9); b.advance([-0.1, -0.9], [0, 0], [7, 8]); print(b.running)"
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from shared_data.inference.stop_strings import StopCriteria


@dataclass(frozen=True)
class Hypothesis:
    """Prompt and new ids of a beam. `score`: the sum of the new ids' log-probabilities; of a finished one, divided by length ** length_penalty."""

    ids: list[int]
    score: float


@dataclass
class Beams:
    """The beams of one prompt.

    stop: where a sequence ends.
    """

    prompt: list[int]
    num_beams: int
    max_new_tokens: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    stop: StopCriteria = field(default_factory=StopCriteria)
    running: list[Hypothesis] = field(init=False)
    finished: list[Hypothesis] = field(init=False, default_factory=list)  # at most num_beams, the best first
    parents: list[int] = field(init=False, default_factory=list)  # which beam each running one continues
    done: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        # All beams are the same at first; only one of them may be continued, or they would stay the same.
        scores = [0.0] + [-math.inf] * (self.num_beams - 1)
        self.running = [Hypothesis(self.prompt, score) for score in scores]

    def advance(self, scores: Sequence[float], parents: Sequence[int], ids: Sequence[int]) -> None:
        """Take the best continuations of all beams, the best first: beam `parents[i]` with `ids[i]` after it."""
        sequences = [[*self.running[parent].ids, id] for parent, id in zip(parents, ids, strict=True)]
        new_tokens = len(sequences[0]) - len(self.prompt)
        ends = [new_tokens == self.max_new_tokens or self.stop.are_met(sequence) for sequence in sequences]
        # Those behind the first num_beams are there so that enough can go on; they may not finish.
        for sequence, score, end in list(zip(sequences, scores, ends, strict=True))[: self.num_beams]:
            if end:
                self.finished.append(Hypothesis(sequence, score / new_tokens**self.length_penalty))
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self.finished[self.num_beams :]
        order = sorted(range(len(sequences)), key=lambda index: ends[index])[: self.num_beams]
        self.parents = [parents[index] for index in order]
        self.running = [
            Hypothesis(sequences[index], -math.inf if ends[index] else scores[index]) for index in order
        ]
        self.done = all(ends) or not self._can_improve(new_tokens)

    def _is_full(self) -> bool:
        return len(self.finished) == self.num_beams

    def _can_improve(self, new_tokens: int) -> bool:
        """Whether a running beam may still become one of the finished.

        Log-probabilities only fall, but a positive length penalty divides them by a growing length. False takes the length of now, which is
        a guess; "never" the largest possible, which is a bound.
        """
        if not self._is_full():
            return True
        if self.early_stopping is True:
            return False
        longest = self.early_stopping == "never" and self.length_penalty > 0
        length = self.max_new_tokens if longest else new_tokens
        return self.running[0].score / length**self.length_penalty > self.finished[-1].score
