"""Normalization of the residual stream: LayerNorm (Ba et al. 2016, GPT-2) and RMSNorm (Zhang & Sennrich 2019, Llama).

    LayerNorm   y = (x - mean(x)) / sqrt(var(x) + ε) · w + b        RMSNorm   y = x / sqrt(mean(x²) + ε) · w

Both are formulas over primitive operations, with the engine's derivative; the fused versions have a derivative of their own
(autograd/fused/normalization.py).

Level 1: `torch.nn.LayerNorm` and transformers' `LlamaRMSNorm`. Level 2: the same over torch.

    uv run python -c "import numpy as np; from v3_numpy_deep.models.blocks.normalization import *; print(RMSNorm(4)(Tensor(np.arange(4.0, dtype='f'))))"
"""

import numpy as np
from jaxtyping import Float

from v3_numpy_deep.autograd import Module, Parameter, Tensor
from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.autograd.kernels import kernel


def layer_norm(
    x: Float[Tensor, "*rows C"], weight: Float[Tensor, "C"], bias: Float[Tensor, "C"], eps: float
) -> Float[Tensor, "*rows C"]:
    """LayerNorm over the last axis: x minus its mean, divided by its standard deviation."""
    centered = x - x.mean(-1, keepdims=True)
    variance = (centered * centered).mean(-1, keepdims=True)
    return centered / ops.sqrt(variance + eps) * weight + bias


def rms_norm(x: Float[Tensor, "*rows C"], weight: Float[Tensor, "C"], eps: float) -> Float[Tensor, "*rows C"]:
    """RMSNorm over the last axis: x divided by its root mean square."""
    mean_square = (x * x).mean(-1, keepdims=True)
    return x / ops.sqrt(mean_square + eps) * weight


class LayerNorm(Module):
    """LayerNorm with gain and bias (GPT-2)."""

    kernels = "fused"

    def __init__(self, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = Parameter(np.ones(hidden_size, np.float32))
        self.bias = Parameter(np.zeros(hidden_size, np.float32))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        """Normalize the last axis."""
        return kernel(self.kernels, layer_norm)(x, self.weight, self.bias, self.eps)


class RMSNorm(Module):
    """RMSNorm with gain (Llama). With `offset`, the gain is 1 + weight (Gemma), so that weight decay pulls it to 1."""

    kernels = "fused"

    def __init__(self, hidden_size: int, eps: float = 1e-5, offset: bool = False) -> None:
        super().__init__()
        self.weight = Parameter((np.zeros if offset else np.ones)(hidden_size, np.float32))
        self.eps, self.offset = eps, offset

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        """Normalize the last axis."""
        weight = self.weight + 1.0 if self.offset else self.weight
        return kernel(self.kernels, rms_norm)(x, weight, self.eps)
