"""LayerNorm and RMSNorm in few passes over memory, with the derivatives by hand. Derivation: models/blocks/normalization.md.

Level 3: the same over NumPy.

    rms_norm(x, weight, eps)   # as models/blocks/normalization.py
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def layer_norm(
    x: Float[Tensor, "*rows C"], weight: Float[Tensor, "C"], bias: Float[Tensor, "C"], eps: float
) -> Float[Tensor, "*rows C"]:
    """(x - mean(x)) / sqrt(var(x) + ε) · w + b"""
    return _LayerNorm.apply(x, weight, bias, eps)


def rms_norm(x: Float[Tensor, "*rows C"], weight: Float[Tensor, "C"], eps: float) -> Float[Tensor, "*rows C"]:
    """x / sqrt(mean(x²) + ε) · w"""
    return _RMSNorm.apply(x, weight, eps)


class _LayerNorm(torch.autograd.Function):
    """With x̂ the normalized input and g = dy · w:  dx = (g - mean(g) - x̂ mean(g x̂)) / σ,  dw = Σ dy x̂,  db = Σ dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        rows = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(-1, x.shape[-1])
        normalized = rows - rows.mean(-1, keepdim=True)
        mean_square = torch.linalg.vector_norm(normalized, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse_deviation = mean_square.add_(eps).rsqrt_()
        normalized.mul_(inverse_deviation)
        ctx.save_for_backward(normalized, inverse_deviation, weight)
        return torch.addcmul(bias, normalized, weight).view(x.shape).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        normalized, inverse_deviation, weight = ctx.saved_tensors
        C = d_y.shape[-1]
        wide = d_y.reshape(-1, C).to(normalized.dtype)
        product = wide * normalized
        d_weight, d_bias = product.sum(0), wide.sum(0)
        # Row means of g = dy · w and of g x̂, as two products with the vector w: no [rows, C] intermediate is needed.
        mean_gradient = torch.mv(wide, weight.to(wide.dtype)).div_(C).unsqueeze(-1)
        mean_product = torch.mv(product, weight.to(wide.dtype)).div_(C).unsqueeze(-1)
        d_x = torch.mul(wide, weight, out=product).sub_(mean_gradient)
        d_x.addcmul_(normalized, mean_product, value=-1).mul_(inverse_deviation)
        return d_x.view(d_y.shape).to(d_y.dtype), d_weight, d_bias, None


class _RMSNorm(torch.autograd.Function):
    """With x̂ the normalized input and g = dy · w:  dx = (g - x̂ mean(g x̂)) / rms(x),  dw = Σ dy x̂."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(-1, x.shape[-1])
        mean_square = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse_rms = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(rows, inverse_rms, weight)
        return (rows * inverse_rms).mul_(weight).view(x.shape).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, inverse_rms, weight = ctx.saved_tensors
        C = d_y.shape[-1]
        wide = d_y.reshape(-1, C).to(rows.dtype)
        normalized = rows * inverse_rms
        product = wide * normalized
        d_weight = product.sum(0)
        mean_product = torch.mv(product, weight.to(wide.dtype)).div_(C).unsqueeze(-1)
        d_x = torch.mul(wide, weight, out=product)
        d_x.addcmul_(normalized, mean_product, value=-1).mul_(inverse_rms)
        return d_x.view(d_y.shape).to(d_y.dtype), d_weight, None
