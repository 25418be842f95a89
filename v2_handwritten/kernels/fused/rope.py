"""The rotation written into one new tensor; the derivative of a rotation is the rotation back. Derivation: models/blocks/rope.md.

Level 3: the same over NumPy.

    apply_rotary(x, cos, sin)   # as models/blocks/rope.py
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def apply_rotary(
    x: Float[Tensor, "B H T D"], cos: Float[Tensor, "#B T half"], sin: Float[Tensor, "#B T half"]
) -> Float[Tensor, "B H T D"]:
    """Turn the pairs (x_i, x_{i + D/2}) of each head by the angle of its position."""
    return _ApplyRotary.apply(x, cos, sin)


class _ApplyRotary(torch.autograd.Function):
    """y = R x, dx = Rᵀ dy: the same rotation by the opposite angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, torch.empty(x.shape, dtype=x.dtype, device=x.device))

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(d_y, cos, -sin, torch.empty_like(d_y)), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, y: Tensor) -> Tensor:
    """Write the rotation into y. The halves are copied first, head by head, so that all products run over long rows."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    first, second = (half.to(cos.dtype).contiguous() for half in x.chunk(2, dim=-1))
    y_first, y_second = y.chunk(2, dim=-1)
    torch.addcmul(first * cos, second, sin, value=-1, out=y_first)
    torch.addcmul(second * cos, first, sin, out=y_second)
    return y
