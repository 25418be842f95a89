"""Normalisation of the residual stream: LayerNorm (Ba et al. 2016, GPT-2) and RMSNorm (Zhang & Sennrich 2019, Llama).

    LayerNorm   y = (x - mean(x)) / sqrt(var(x) + ε) · w + b        RMSNorm   y = x / sqrt(mean(x²) + ε) · w

Each comes twice: `plain_…` from primitive operations with the engine's derivative, and fused, with the derivative written
by hand (autograd/fused/normalization.py).

Level 1: `torch.nn.LayerNorm` and transformers' `LlamaRMSNorm`. Level 2: the same over torch.

    python -c "import numpy as np; from v3_numpy_deep.models.blocks.normalization import *; print(RMSNorm(4)(Tensor(np.arange(4.0, dtype='f'))))"
"""

import numpy as np
from jaxtyping import Float

from v3_numpy_deep.autograd import Module, Parameter, Tensor, fused
from v3_numpy_deep.autograd import operations as ops


def plain_layer_norm(
    x: Float[Tensor, "*rows C"], weight: Float[Tensor, "C"], bias: Float[Tensor, "C"], eps: float
) -> Float[Tensor, "*rows C"]:
    """LayerNorm over the last axis, from primitive operations."""
    centered = x - x.mean(-1, keepdims=True)
    variance = (centered * centered).mean(-1, keepdims=True)
    return centered / ops.sqrt(variance + eps) * weight + bias


def plain_rms_norm(
    x: Float[Tensor, "*rows C"], weight: Float[Tensor, "C"], eps: float
) -> Float[Tensor, "*rows C"]:
    """RMSNorm over the last axis, from primitive operations."""
    mean_square = (x * x).mean(-1, keepdims=True)
    return x / ops.sqrt(mean_square + eps) * weight


def layer_norm(
    x: Float[Tensor, "*rows C"], weight: Float[Tensor, "C"], bias: Float[Tensor, "C"], eps: float
) -> Float[Tensor, "*rows C"]:
    """LayerNorm over the last axis, fused."""
    return fused.layer_norm(x, weight, bias, eps)


def rms_norm(x: Float[Tensor, "*rows C"], weight: Float[Tensor, "C"], eps: float) -> Float[Tensor, "*rows C"]:
    """RMSNorm over the last axis, fused."""
    return fused.rms_norm(x, weight, eps)


class LayerNorm(Module):
    """LayerNorm with gain and bias (GPT-2)."""

    def __init__(self, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = Parameter(np.ones(hidden_size, np.float32))
        self.bias = Parameter(np.zeros(hidden_size, np.float32))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        """Normalise the last axis."""
        return layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(Module):
    """RMSNorm with gain (Llama)."""

    def __init__(self, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = Parameter(np.ones(hidden_size, np.float32))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        """Normalise the last axis."""
        return rms_norm(x, self.weight, self.eps)
