"""Five logits: temperature, filters, penalties and a draw, as in v2_handwritten/inference/sampling.md."""

from typing import Any

import torch

from shared_data.inference.sampling_parameters import SamplingParameters
from tests.worked import agrees
from v2_handwritten.inference.penalties import apply_penalties
from v2_handwritten.inference.sampling import filter_logits, sample

PAGE = "v2_handwritten/inference/sampling.md"

# of "ball", "kite", "dog", "moon", "of", after "Mia found the"
LOGITS = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0]])


def probabilities(**filters: float) -> torch.Tensor:
    return filter_logits(LOGITS, **filters).softmax(dim=-1)[0]


def test_temperature_sharpens_or_flattens() -> None:
    agrees(PAGE, "temperature", torch.stack([probabilities(temperature=t) for t in (0.5, 1.0, 2.0)]))


def test_top_k_and_top_p_cut_off_the_tail() -> None:
    rows = [
        probabilities(),
        probabilities().cumsum(dim=0),
        probabilities(top_k=2),
        probabilities(top_p=0.8),
        probabilities(temperature=2.0, top_p=0.8),
        probabilities(temperature=2.0, top_k=3, top_p=0.8),
    ]
    agrees(PAGE, "filters", torch.stack(rows))


def test_uniform_numbers_become_tokens() -> None:
    filtered = filter_logits(LOGITS, top_p=0.8)
    agrees(PAGE, "cumulative", filtered.softmax(dim=-1).cumsum(dim=-1))
    drawn = [int(sample(filtered, torch.tensor([u]))) for u in (0.0, 0.6, 0.63, 0.9)]
    assert drawn == [0, 0, 1, 2]


def test_min_p_and_typical_sampling_follow_the_shape() -> None:
    p = probabilities()
    surprise = -p.log()
    rows = [
        surprise,
        (surprise - (p * surprise).sum()).abs(),
        probabilities(min_p=0.2),
        probabilities(typical_p=0.2),
        probabilities(typical_p=0.6),
    ]
    agrees(PAGE, "kept", torch.stack(rows))


def test_penalties_change_the_logits_of_what_was_written() -> None:
    """The prompt is "kite", generated is "ball dog ball"."""
    penalties: list[dict[str, Any]] = [
        {"logit_bias": {4: 1.5}},
        {"repetition_penalty": 1.25},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.4},
        {"no_repeat_ngram_size": 2},
    ]
    together = {name: value for penalty in penalties for name, value in penalty.items()}
    rows = [
        apply_penalties(LOGITS, [[1, 0, 2, 0]], [1], SamplingParameters(**each))
        for each in ({}, *penalties, together)
    ]
    agrees(PAGE, "logits after", torch.cat(rows))
