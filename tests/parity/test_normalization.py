"""Levels 1 and 2: LayerNorm and RMSNorm, their derivatives, and the fused against the plain version."""

import pytest
import torch

from tests.parity.arrays import array
from tests.parity.block_checks import compare_functions, compare_modules, randomise
from tests.parity.recorder import ParityRecorder
from v1_quick.models.blocks.normalization import LayerNorm as LibraryLayerNorm
from v1_quick.models.blocks.normalization import RMSNorm as LibraryRMSNorm
from v2_handwritten.models.blocks.normalization import (
    LayerNorm,
    RMSNorm,
    layer_norm,
    plain_layer_norm,
    plain_rms_norm,
    rms_norm,
)

X = torch.from_numpy(array(0, 3, 5, 16, scale=2.0)) + 1.5  # a mean that is not 0


def test_layer_norm_and_its_gradients_equal_the_library(parity: ParityRecorder) -> None:
    theirs = randomise(LibraryLayerNorm(16, eps=1e-5))
    compare_modules(parity, "normalization, LayerNorm", LayerNorm(16, 1e-5).double(), theirs, X, 4e-15)


def test_rms_norm_and_its_gradients_equal_the_library(parity: ParityRecorder) -> None:
    theirs = randomise(LibraryRMSNorm(16, eps=1e-5))  # computes in float32, whatever it is given
    compare_modules(parity, "normalization, RMSNorm", RMSNorm(16, 1e-5).double(), theirs, X, 1e-6)


def test_the_fused_norms_equal_the_plain_ones(parity: ParityRecorder) -> None:
    weight, bias = torch.from_numpy(array(1, 16)), torch.from_numpy(array(2, 16))
    for fused, plain, parameters in (
        (layer_norm, plain_layer_norm, {"weight": weight, "bias": bias}),
        (rms_norm, plain_rms_norm, {"weight": weight}),
    ):
        compare_functions(
            parity,
            f"normalization, {fused.__name__} against plain",
            lambda f=fused, **inputs: f(**inputs, eps=1e-5),
            lambda f=plain, **inputs: f(**inputs, eps=1e-5),
            {"x": X, **parameters},
            3e-15,
            levels="v2",
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_of_half_precision_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    x = torch.full((1, 16), 300.0, dtype=dtype)  # 300² overflows float16
    x[0, ::2] = -300
    weight = torch.ones(16, dtype=dtype)
    for y in (rms_norm(x, weight, 1e-5), layer_norm(x, weight, torch.zeros_like(weight), 1e-5)):
        assert y.dtype == dtype
        torch.testing.assert_close(y.abs(), torch.ones_like(y))


def test_rms_norm_ignores_the_scale_and_layer_norm_also_the_mean_of_its_input() -> None:
    """The exercise of normalization.md."""
    ones, zeros = torch.ones(16).double(), torch.zeros(16).double()
    torch.testing.assert_close(rms_norm(7 * X, ones, 0.0), rms_norm(X, ones, 0.0))
    torch.testing.assert_close(layer_norm(7 * X + 3, ones, zeros, 0.0), layer_norm(X, ones, zeros, 0.0))
    assert (rms_norm(X + 3, ones, 0.0) - rms_norm(X, ones, 0.0)).abs().max() > 0.1
    x = X.clone().requires_grad_()
    rms_norm(x, ones, 0.0).backward(torch.from_numpy(array(3, 3, 5, 16)))
    assert x.grad is not None
    # A function that ignores the scale of x has a gradient that is orthogonal to x.
    torch.testing.assert_close((x.grad * x).sum(-1), torch.zeros(3, 5).double(), atol=1e-12, rtol=0)
