"""Level 2 and the library: LayerNorm and RMSNorm, and their derivatives."""

import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.parity.arrays import array
from tests.parity.block_checks import compare_modules, each_kernel, randomise
from tests.parity.recorder import ParityRecorder
from v2_handwritten.kernels import kernel
from v2_handwritten.models.blocks.normalization import LayerNorm, RMSNorm, layer_norm, rms_norm

X = torch.from_numpy(array(0, 3, 5, 16, scale=2.0)) + 1.5  # a mean that is not 0


@each_kernel
def test_norms_and_their_gradients_equal_the_library(parity: ParityRecorder, kernels: str) -> None:
    for ours, theirs, tolerance in (
        (LayerNorm(16), torch.nn.LayerNorm(16), 4e-15),
        (RMSNorm(16), LlamaRMSNorm(16, eps=1e-5), 1e-6),  # the library's computes in float32 always
        (RMSNorm(16, offset=True), Gemma2RMSNorm(16, eps=1e-5), 1e-6),
    ):
        ours.kernels = kernels
        component = f"normalization, {kernels}, {type(theirs).__name__}"
        compare_modules(parity, component, ours.double(), randomise(theirs), X, tolerance)


@pytest.mark.parametrize("kernels", ["plain", "fused", "library"])
def test_one_plus_a_small_weight_is_not_rounded_to_one_in_bfloat16(kernels: str) -> None:
    ours, theirs = RMSNorm(16, offset=True).bfloat16(), Gemma2RMSNorm(16, eps=1e-5).bfloat16()
    ours.kernels = kernels
    with torch.no_grad():
        for norm in (ours, theirs):
            norm.weight.fill_(2**-9)  # 1 + 2⁻⁹ is no bfloat16
    x = (X * 100).bfloat16()
    assert torch.equal(ours(x), theirs(x))
    assert not torch.equal(ours(x), rms_norm(x, torch.ones(16), 1e-5))


@each_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_of_half_precision_inputs_are_computed_in_float32(
    dtype: torch.dtype, kernels: str
) -> None:
    x = torch.full((1, 16), 300.0, dtype=dtype)  # 300² overflows float16
    x[0, ::2] = -300
    weight = torch.ones(16, dtype=dtype)
    rms, layer = kernel(kernels, rms_norm), kernel(kernels, layer_norm)
    for y in (rms(x, weight, 1e-5), layer(x, weight, torch.zeros_like(weight), 1e-5)):
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
