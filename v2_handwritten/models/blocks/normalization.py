"""Normalization of the residual stream: LayerNorm (Ba et al. 2016, GPT-2) and RMSNorm (Zhang & Sennrich 2019, Llama).

    LayerNorm   y = (x - mean(x)) / sqrt(var(x) + ε) · w + b        RMSNorm   y = x / sqrt(mean(x²) + ε) · w

The statistics are computed in float32 when x is bfloat16 or float16. The derivatives stand in kernels/fused/normalization.py,
derived in normalization.md.

Level 1: `torch.nn.LayerNorm` and transformers' `LlamaRMSNorm`. Level 3: the same over its own autograd.

    uv run python -c "import torch; from v2_handwritten.models.blocks.normalization import *; print(RMSNorm(4)(torch.arange(4.0)))"
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from v2_handwritten.kernels import kernel


def layer_norm(
    x: Float[Tensor, "*rows C"], weight: Float[Tensor, "C"], bias: Float[Tensor, "C"], eps: float
) -> Float[Tensor, "*rows C"]:
    """(x - mean(x)) / sqrt(var(x) + ε) · w + b over the last axis."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centered = wide - wide.mean(-1, keepdim=True)
    variance = (centered * centered).mean(-1, keepdim=True)
    return (centered * torch.rsqrt(variance + eps) * weight + bias).to(x.dtype)


def rms_norm(x: Float[Tensor, "*rows C"], weight: Float[Tensor, "C"], eps: float) -> Float[Tensor, "*rows C"]:
    """x / sqrt(mean(x²) + ε) · w over the last axis."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean_square = (wide * wide).mean(-1, keepdim=True)
    return (wide * torch.rsqrt(mean_square + eps) * weight).to(x.dtype)


class LayerNorm(nn.Module):
    """LayerNorm with gain and bias (GPT-2)."""

    kernels = "fused"

    def __init__(self, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        """Normalize the last axis."""
        return kernel(self.kernels, layer_norm)(x, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """RMSNorm with gain (Llama). With `offset`, the gain is 1 + weight (Gemma), so that weight decay pulls it to 1.

    1 + w is added in float32 at least: in bfloat16, 1.004 would already be 1.
    """

    kernels = "fused"

    def __init__(self, hidden_size: int, eps: float = 1e-5, offset: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size) if offset else torch.ones(hidden_size))
        self.eps, self.offset = eps, offset

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        """Normalize the last axis."""
        norm = kernel(self.kernels, rms_norm)
        if not self.offset:
            return norm(x, self.weight, self.eps)
        wide = torch.promote_types(x.dtype, torch.float32)
        return norm(x.to(wide), self.weight.to(wide) + 1, self.eps).to(x.dtype)
