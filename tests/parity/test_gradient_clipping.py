"""Clipping by global norm against `torch.nn.utils.clip_grad_norm_`."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.parity.arrays import array
from tests.parity.optimizer_cases import parameters
from tests.parity.recorder import ParityRecorder
from tests.parity.training_cases import LEVELS, level_module

SHAPES: list[tuple[int, ...]] = [(40, 30), (50,), (3, 4, 5), (2,)]


def with_gradients(level: str, dtype: Any = np.float64) -> list[Any]:
    """Parameters with gradients, and one without."""
    made = parameters(level, SHAPES, dtype)
    for i, parameter in enumerate(made[:3]):
        gradient = array(i, *SHAPES[i], dtype=dtype)
        parameter.grad = gradient if level == "v3" else torch.from_numpy(gradient)
    return made


def gradients(made: list[Any]) -> np.ndarray:
    return np.concatenate([np.ravel(p.grad) for p in made if p.grad is not None])


def clip(level: str, made: list[Any], max_norm: float) -> float:
    if level == "v1":
        return torch.nn.utils.clip_grad_norm_(made, max_norm).item()
    return level_module(level, "pretrain.components.gradient_clipping").clip_gradients(iter(made), max_norm)


@pytest.mark.parametrize("level", LEVELS)
def test_clipping_keeps_the_direction_and_caps_the_norm(level: str) -> None:
    """The exercise of gradient_clipping.md: the clipped gradient is parallel to the old one and max_norm long."""
    made = with_gradients(level)
    before = gradients(made)
    norm = clip(level, made, 0.5)
    after = gradients(made)
    assert norm == pytest.approx(float(np.linalg.norm(before)))
    assert float(np.linalg.norm(after)) == pytest.approx(0.5, rel=1e-6)
    assert float(after @ before) == pytest.approx(float(np.linalg.norm(after) * norm))
    assert clip(level, made, 0.0) == pytest.approx(0.5), "0 turns clipping off"
    np.testing.assert_array_equal(gradients(made), after)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-15), (np.float32, 1e-7)])
def test_norm_and_clipped_gradients_agree_with_torch(
    dtype: Any, tolerance: float, parity: ParityRecorder
) -> None:
    for max_norm in (0.5, 1e6):
        norms, clipped = {}, {}
        for level in ("v1", *LEVELS):
            made = with_gradients(level, dtype)
            norms[level] = np.array(clip(level, made, max_norm), dtype)
            clipped[level] = gradients(made)
        for a, b in (("v1", "v2"), ("v1", "v3"), ("v2", "v3")):
            row = {
                "component": f"gradient clipping to {max_norm:g}",
                "levels": f"{a}-{b}",
                "tolerance": tolerance,
            }
            parity(quantity="global norm", actual=norms[b], expected=norms[a], **row)
            parity(quantity="gradients", actual=clipped[b], expected=clipped[a], **row)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("level", LEVELS)
def test_a_gradient_that_is_not_finite_is_reported_and_left_alone(level: str, bad: float) -> None:
    made = with_gradients(level)
    made[1].grad[3] = bad
    before = gradients(made).copy()
    assert not np.isfinite(clip(level, made, 1.0))
    np.testing.assert_array_equal(gradients(made), before)
    assert clip(level, [], 1.0) == 0.0
