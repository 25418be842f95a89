"""Normalisation of the residual stream: LayerNorm (Ba et al. 2016, GPT-2) and RMSNorm (Zhang & Sennrich 2019, Llama).

    LayerNorm   y = (x - mean(x)) / sqrt(var(x) + ε) · w + b        RMSNorm   y = x / sqrt(mean(x²) + ε) · w

Each comes twice: `plain_…` from torch's operations with autograd's derivative, and fused, with the derivative written by
hand (derived in normalization.md). The statistics are computed in float32 when x is bfloat16 or float16.

Level 1: `torch.nn.LayerNorm` and transformers' `LlamaRMSNorm`. Level 3: the same over `autograd.fused`.

    python -c "import torch; from v2_handwritten.models.blocks.normalization import *; print(RMSNorm(4)(torch.arange(4.0)))"
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def plain_layer_norm(
    x: Float[Tensor, "*rows C"], weight: Float[Tensor, "C"], bias: Float[Tensor, "C"], eps: float
) -> Float[Tensor, "*rows C"]:
    """LayerNorm over the last axis, from torch's operations."""
    wide = _at_least_float32(x)
    centered = wide - wide.mean(-1, keepdim=True)
    variance = (centered * centered).mean(-1, keepdim=True)
    return (centered * torch.rsqrt(variance + eps) * weight + bias).to(x.dtype)


def plain_rms_norm(
    x: Float[Tensor, "*rows C"], weight: Float[Tensor, "C"], eps: float
) -> Float[Tensor, "*rows C"]:
    """RMSNorm over the last axis, from torch's operations."""
    wide = _at_least_float32(x)
    mean_square = (wide * wide).mean(-1, keepdim=True)
    return (wide * torch.rsqrt(mean_square + eps) * weight).to(x.dtype)


def layer_norm(
    x: Float[Tensor, "*rows C"], weight: Float[Tensor, "C"], bias: Float[Tensor, "C"], eps: float
) -> Float[Tensor, "*rows C"]:
    """LayerNorm over the last axis, fused."""
    return _LayerNorm.apply(x, weight, bias, eps)


def rms_norm(x: Float[Tensor, "*rows C"], weight: Float[Tensor, "C"], eps: float) -> Float[Tensor, "*rows C"]:
    """RMSNorm over the last axis, fused."""
    return _RMSNorm.apply(x, weight, eps)


class _LayerNorm(torch.autograd.Function):
    """With x̂ the normalised input and g = dy · w:  dx = (g - mean(g) - x̂ mean(g x̂)) / σ,  dw = Σ dy x̂,  db = Σ dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        rows = _at_least_float32(x).reshape(-1, x.shape[-1])
        normalised = rows - rows.mean(-1, keepdim=True)
        mean_square = torch.linalg.vector_norm(normalised, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse_deviation = mean_square.add_(eps).rsqrt_()
        normalised.mul_(inverse_deviation)
        ctx.save_for_backward(normalised, inverse_deviation, weight)
        return torch.addcmul(bias, normalised, weight).view(x.shape).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        normalised, inverse_deviation, weight = ctx.saved_tensors
        C = d_y.shape[-1]
        wide = d_y.reshape(-1, C).to(normalised.dtype)
        product = wide * normalised
        d_weight, d_bias = product.sum(0), wide.sum(0)
        # Row means of g = dy · w and of g x̂, as two products with the vector w: no [rows, C] intermediate is needed.
        mean_gradient = torch.mv(wide, weight.to(wide.dtype)).div_(C).unsqueeze(-1)
        mean_product = torch.mv(product, weight.to(wide.dtype)).div_(C).unsqueeze(-1)
        d_x = torch.mul(wide, weight, out=product).sub_(mean_gradient)
        d_x.addcmul_(normalised, mean_product, value=-1).mul_(inverse_deviation)
        return d_x.view(d_y.shape).to(d_y.dtype), d_weight, d_bias, None


class _RMSNorm(torch.autograd.Function):
    """With x̂ the normalised input and g = dy · w:  dx = (g - x̂ mean(g x̂)) / rms(x),  dw = Σ dy x̂."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = _at_least_float32(x).reshape(-1, x.shape[-1])
        mean_square = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse_rms = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(rows, inverse_rms, weight)
        return (rows * inverse_rms).mul_(weight).view(x.shape).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, inverse_rms, weight = ctx.saved_tensors
        C = d_y.shape[-1]
        wide = d_y.reshape(-1, C).to(rows.dtype)
        normalised = rows * inverse_rms
        product = wide * normalised
        d_weight = product.sum(0)
        mean_product = torch.mv(product, weight.to(wide.dtype)).div_(C).unsqueeze(-1)
        d_x = torch.mul(wide, weight, out=product)
        d_x.addcmul_(normalised, mean_product, value=-1).mul_(inverse_rms)
        return d_x.view(d_y.shape).to(d_y.dtype), d_weight, None


class LayerNorm(nn.Module):
    """LayerNorm with gain and bias (GPT-2)."""

    def __init__(self, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        """Normalise the last axis."""
        return layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """RMSNorm with gain (Llama)."""

    def __init__(self, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        """Normalise the last axis."""
        return rms_norm(x, self.weight, self.eps)


def _at_least_float32(x: Tensor) -> Tensor:
    """Sums of squares in bfloat16 or float16 lose digits or overflow."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
