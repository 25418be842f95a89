"""The filters of sampling are transformers' warpers, ties included, and equal uniforms draw equal tokens."""

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from shared_data.errors import UserError
from tests.parity.arrays import array
from tests.parity.recorder import ParityRecorder
from v2_handwritten.inference import sampling as v2
from v3_numpy_deep.inference import sampling as v3

FILTERS = [
    {"temperature": 0.7},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 1000},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"top_p": 1.0},
    {"top_p": 1e-6},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.95},
    {"temperature": 3.0, "top_k": 7, "top_p": 0.5},
    {"min_p": 0.0},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"typical_p": 0.2},
    {"typical_p": 0.9},
    {"typical_p": 1e-6},
    {"temperature": 0.7, "top_k": 20, "typical_p": 0.9},
    {"temperature": 1.7, "top_k": 30, "top_p": 0.95, "min_p": 0.03, "typical_p": 0.8},
]


def library_filter(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    typical_p: float | None = None,
) -> torch.Tensor:
    """transformers' warpers, as `model.generate` runs them."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p and top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p is not None else []
    warpers += [TypicalLogitsWarper(typical_p)] if typical_p and typical_p < 1 else []
    return warpers(None, logits)


def logits_of(kind: str) -> np.ndarray:
    """Rows of 50 logits: all different; many equal; all equal; one token with nearly all probability; most tokens forbidden."""
    spread = array(3, 40, 50, scale=3.0, dtype=np.float32)
    return {
        "different": spread,
        "ties": np.round(spread),
        "uniform": np.zeros((2, 50), np.float32),
        "forbidden": np.where(np.arange(50) % 7, -np.inf, spread).astype(np.float32),
        "certain": np.where(np.arange(50) == 17, 60.0, spread).astype(np.float32),
    }[kind]


@pytest.mark.parametrize("kind", ["different", "ties", "uniform", "certain", "forbidden"])
def test_filtered_distributions_equal_those_of_the_library(parity: ParityRecorder, kind: str) -> None:
    """Where logits are equal, which of them top-p drops is the accident of an unstable sort: then only how many counts."""
    logits = logits_of(kind)
    expected, torch_filtered, numpy_filtered = [], [], []
    for filters in FILTERS:
        as_tensor = torch.from_numpy(logits)
        results = library_filter(as_tensor, **filters), v2.filter_logits(as_tensor, **filters)
        for kept, result in zip(
            (expected, torch_filtered, numpy_filtered),
            (*results, v3.filter_logits(logits, **filters)),
            strict=True,
        ):
            result = np.asarray(result)
            unordered = kind in ("ties", "uniform") and filters.get("top_p", 1.0) < 1
            kept.append(np.sort(result, axis=-1) if unordered else result)
    assert np.array_equal(numpy_filtered, torch_filtered)
    for levels, actual in (("v2-v1", torch_filtered), ("v3-v1", numpy_filtered)):
        parity(
            component=f"sampling, {kind} logits",
            quantity="filtered logits",
            levels=levels,
            actual=np.stack(actual),
            expected=np.stack(expected),
            tolerance=0.0,
        )


def test_equal_logits_are_dropped_in_the_order_of_their_ids() -> None:
    logits = np.zeros((1, 4))
    for filtered in (
        v2.filter_logits(torch.from_numpy(logits), top_p=0.5).numpy(),
        v3.filter_logits(logits, top_p=0.5),
    ):
        assert filtered.tolist() == [[-np.inf, -np.inf, 0.0, 0.0]]


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    """The exercise of sampling.md: of 0.5, 0.25, 0.125, 0.125, top_p 0.4 keeps one token, 0.6 and 0.7 two, 0.8 three."""
    logits = np.log([[0.5, 0.25, 0.125, 0.125]])
    for top_p, kept in ((0.4, 1), (0.6, 2), (0.7, 2), (0.8, 3), (0.99, 4)):
        for filtered in (
            v2.filter_logits(torch.from_numpy(logits), top_p=top_p).numpy(),
            v3.filter_logits(logits, top_p=top_p),
        ):
            assert np.isfinite(filtered).sum() == kept


def test_min_p_keeps_few_where_the_model_is_certain_and_many_where_it_is_not() -> None:
    """min_p 0.1 is a threshold of 0.08 where the best token has 0.8, of 0.025 where it has 0.25."""
    logits = np.log([[0.8, 0.1, 0.05, 0.03, 0.02], [0.25, 0.25, 0.25, 0.24, 0.01]])
    for filtered in (
        v2.filter_logits(torch.from_numpy(logits), min_p=0.1).numpy(),
        v3.filter_logits(logits, min_p=0.1),
    ):
        assert np.isfinite(filtered).sum(axis=1).tolist() == [2, 4]


def test_typical_sampling_may_drop_the_most_probable_token() -> None:
    """The exercise of sampling.md. Entropy 1.33: a surprise of 0.43 is closer than one of 3.00. Entropy 1.97: 2.30 is closer than 1.20."""
    logits = np.log([[0.65, *[0.05] * 7], [0.3, *[0.1] * 7]])
    for filtered in (
        v2.filter_logits(torch.from_numpy(logits), typical_p=0.35).numpy(),
        v3.filter_logits(logits, typical_p=0.35),
    ):
        assert np.isfinite(filtered)[:, 0].tolist() == [True, False]


@pytest.mark.parametrize("kind", ["different", "ties", "certain"])
def test_the_same_uniform_numbers_draw_the_same_tokens(kind: str) -> None:
    logits = np.repeat(logits_of(kind), 50, axis=0)
    filtered = v3.filter_logits(logits, temperature=0.9, top_k=30, top_p=0.9)
    uniform = np.random.default_rng(0).random(len(filtered))
    drawn = v3.sample(filtered, uniform)
    as_tensor = torch.from_numpy(filtered)
    assert np.array_equal(v2.sample(as_tensor, torch.from_numpy(uniform)).numpy(), drawn)


def test_draws_follow_the_probabilities_exactly() -> None:
    """Uniforms on a fine grid draw each token in proportion to its probability, and a filtered token never."""
    logits = v3.filter_logits(logits_of("different")[:1], top_k=10)
    n = 20_000
    grid = (np.arange(n) + 0.5) / n
    counts = np.bincount(v3.sample(np.repeat(logits, n, axis=0), grid), minlength=50)
    weights = np.exp(logits[0].astype(np.float64))
    assert np.abs(counts - n * weights / weights.sum()).max() <= 1.0
    assert counts[~np.isfinite(logits[0])].sum() == 0


def test_the_ends_of_the_unit_interval_draw_possible_tokens() -> None:
    logits = np.full((2, 5), -np.inf)
    logits[:, 1], logits[:, 3] = 0.0, 1.0
    ends = np.array([0.0, np.nextafter(1.0, 0.0)])
    assert v3.sample(logits, ends).tolist() == [1, 3]
    assert v2.sample(torch.from_numpy(logits), torch.from_numpy(ends)).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -0.1}, r"min_p -0.1 is not in \[0, 1\]; 0.05"),
        ({"min_p": 1.1}, "min_p 1.1"),
        ({"typical_p": 0.0}, r"typical_p 0.0 is not in \(0, 1\]; 0.9"),
        ({"typical_p": float("nan")}, "typical_p nan"),
    ],
)
def test_parameters_out_of_range_are_named(filters: dict, message: str) -> None:
    logits = np.zeros((1, 4))
    for level, values in ((v2, torch.from_numpy(logits)), (v3, logits)):
        with pytest.raises(UserError, match=message):
            level.filter_logits(values, **filters)
