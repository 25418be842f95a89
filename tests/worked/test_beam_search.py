"""Two beams over a model of two words and an end, as in v2_handwritten/inference/beam_search.md."""

import numpy as np
import torch

from shared_data.inference.beams import Beams
from shared_data.inference.stop_strings import StopCriteria
from tests.worked import agrees, table
from v2_handwritten.inference.beam_search import best_continuations

PAGE = "v2_handwritten/inference/beam_search.md"
A, B, END, FIRST = 0, 1, 2, 3


def step(beams: Beams) -> tuple[list[str], list[float]]:
    """One step with two beams: the four best continuations, by name, and their log-probabilities."""
    at_first, after_a, after_b = table(PAGE, "next token")
    rows = {FIRST: at_first, A: after_a, B: after_b}
    log_probs = torch.tensor(np.array([rows[beam.ids[-1]] for beam in beams.running])).log()
    so_far = torch.tensor([beam.score for beam in beams.running], dtype=torch.float64)
    scores, parents, ids = best_continuations(so_far[:, None] + log_probs, 4)
    names = {A: "a", B: "b", END: "end"}
    found = [
        " ".join(names[i] for i in [*beams.running[parent].ids[1:], id])
        for parent, id in zip(parents.tolist(), ids.tolist(), strict=True)
    ]
    beams.advance(scores.tolist(), parents.tolist(), ids.tolist())
    return found, scores.tolist()


def after_three_steps(length_penalty: float, early_stopping: bool | str = False) -> Beams:
    beams = Beams([FIRST], 2, 20, length_penalty, early_stopping, StopCriteria([END]))
    for _ in range(3):
        step(beams)
    return beams


def test_each_step_keeps_the_best_continuations() -> None:
    beams = Beams([FIRST], 2, 20, stop=StopCriteria([END]))
    found, _ = step(beams)
    assert found[:3] == ["a", "b", "end"]
    assert not beams.finished, "the third is behind the two beams"
    for number, wanted in (
        (2, ["b end", "a a", "a b", "a end"]),
        (3, ["a b end", "a a a", "a a b", "a a end"]),
    ):
        found, scores = step(beams)
        assert found == wanted
        agrees(PAGE, f"step {number}", [np.exp(scores), scores])
        if number == 2:
            assert beams.parents == [0, 0]
    assert [hypothesis.ids[1:] for hypothesis in beams.finished] == [[B, END], [A, B, END]]


def test_the_length_penalty_decides_which_is_best_and_when_to_stop() -> None:
    columns = []
    for length_penalty in (0.0, 1.0, 2.0):
        beams = after_three_steps(length_penalty)
        scores = {len(hypothesis.ids): hypothesis.score for hypothesis in beams.finished}
        columns.append([scores[3], scores[4], beams.running[0].score / 3**length_penalty])
        assert beams.done == (length_penalty < 2)
    agrees(PAGE, "score with length penalty", np.array(columns).T)
    assert after_three_steps(2.0, early_stopping=True).done
    assert not after_three_steps(2.0, early_stopping="never").done
