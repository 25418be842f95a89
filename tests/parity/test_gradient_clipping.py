"""Clipping by global norm against `torch.nn.utils.clip_grad_norm_`."""

from typing import Any

import numpy as np
import pytest
import torch

import v1_quick.pretrain.components.gradient_clipping as v1
import v2_handwritten.pretrain.components.gradient_clipping as v2
import v3_numpy_deep.pretrain.components.gradient_clipping as v3
from tests.parity.arrays import array
from tests.parity.recorder import ParityRecorder
from v3_numpy_deep.autograd import Parameter

SHAPES = [(40, 30), (50,), (3, 4, 5)]


def parameters(level: str, scale: float = 1.0, dtype: Any = np.float64) -> list[Any]:
    """Parameters with gradients, and one without."""
    made: list[Any] = []
    for i, shape in enumerate(SHAPES):
        gradient = array(i, *shape, scale=scale, dtype=dtype)
        if level == "v3":
            made.append(Parameter(np.zeros_like(gradient)))
            made[-1].grad = gradient
        else:
            made.append(torch.nn.Parameter(torch.zeros(shape, dtype=torch.from_numpy(gradient).dtype)))
            made[-1].grad = torch.from_numpy(gradient)
    made.append(Parameter(np.zeros(2)) if level == "v3" else torch.nn.Parameter(torch.zeros(2)))
    return made


def gradients(made: list[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(p.grad).ravel() for p in made if p.grad is not None])


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-15), (np.float32, 1e-8)])
def test_norm_and_clipped_gradients_agree_with_torch(
    dtype: Any, tolerance: float, parity: ParityRecorder
) -> None:
    norms: dict[str, list[float]] = {"v1": [], "v2": [], "v3": []}
    clipped: dict[str, list[np.ndarray]] = {"v1": [], "v2": [], "v3": []}
    for level, module in (("v1", v1), ("v2", v2), ("v3", v3)):
        for max_norm in (0.5, 1e6, 0.0):
            made = parameters(level, dtype=dtype)
            norms[level].append(module.clip_gradients(iter(made), max_norm))
            clipped[level].append(gradients(made))
    for a, b in (("v1", "v2"), ("v1", "v3"), ("v2", "v3")):
        row = {"component": "gradient clipping", "levels": f"{a}-{b}", "tolerance": tolerance}
        norm = {name: np.array(values, dtype) for name, values in norms.items()}
        parity(quantity="global norm", actual=norm[b], expected=norm[a], **row)
        both = {name: np.concatenate(values) for name, values in clipped.items()}
        parity(quantity="gradients", actual=both[b], expected=both[a], **row)


@pytest.mark.parametrize(("level", "module"), [("v2", v2), ("v3", v3)])
def test_clipping_keeps_the_direction_and_caps_the_norm(level: str, module: Any) -> None:
    """The exercise of gradient_clipping.md: the clipped gradient is parallel to the old one and max_norm long."""
    made = parameters(level)
    before = gradients(made)
    norm = module.clip_gradients(made, 0.5)
    after = gradients(made)
    assert norm == pytest.approx(float(np.linalg.norm(before)))
    assert float(np.linalg.norm(after)) == pytest.approx(0.5, rel=1e-6)
    assert float(after @ before) == pytest.approx(float(np.linalg.norm(after) * norm))


@pytest.mark.parametrize(("level", "module"), [("v2", v2), ("v3", v3)])
def test_a_gradient_that_is_not_finite_is_reported_and_left_alone(level: str, module: Any) -> None:
    for bad in (float("nan"), float("inf")):
        made = parameters(level)
        made[1].grad[3] = bad
        before = gradients(made).copy()
        assert not np.isfinite(module.clip_gradients(made, 1.0))
        np.testing.assert_array_equal(gradients(made), before)
    assert module.clip_gradients([], 1.0) == 0.0
