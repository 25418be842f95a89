"""Rotary positions (Su et al. 2021, section 3.2.2) as a product of complex numbers.

The pair (x_i, x_(i + D/2)) is the complex number z_i = x_i + i x_(i + D/2), and turning it by the angle of its position is
z_i e^(i angle). The derivative of a rotation is the rotation back: the product with the conjugate, e^(−i angle).
The composition, four products of halves, is `plain_apply_rotary` in models/blocks/rope.py; over halves of 16 numbers NumPy
spends its time on starting inner loops, and the complex product is twice as fast.

    python -c "from v3_numpy_deep.autograd.fused.rotary import rotary; help(rotary)"
"""

import numpy as np
from jaxtyping import Float

from v3_numpy_deep.autograd.tensor import Array, Tensor, record


def rotary(
    x: Float[Tensor, "B H T D"], cos: Float[Array, "#B T half"], sin: Float[Array, "#B T half"]
) -> Float[Tensor, "B H T D"]:
    """Turn each pair of x by its angle;  ∂x = g turned back"""
    return record(_turn(x.data, cos, sin), (x,), lambda g: (_turn(g, cos, -sin),))


def _turn(x: Array, cos: Array, sin: Array) -> Array:
    """The rotation. Memory is laid out as [B, T, H, D], as the projections before and attention after it have it."""
    B, H, T, D = x.shape
    half = D // 2
    x = x.transpose(0, 2, 1, 3)
    z = np.empty((B, T, H, half), np.result_type(x.dtype, np.complex64))
    z.real, z.imag = x[..., :half], x[..., half:]
    turn = np.empty((*cos.shape[:2], 1, half), z.dtype)  # the same for all heads
    turn.real, turn.imag = cos[:, :, None], sin[:, :, None]
    z *= turn
    y = np.empty((B, T, H, D), x.dtype)
    y[..., :half], y[..., half:] = z.real, z.imag
    return y.transpose(0, 2, 1, 3)
