"""Rotary positions (Su et al. 2021, section 3.2.2) as a product of complex numbers.

The pair (x_i, x_(i + D/2)) is the complex number z_i = x_i + i x_(i + D/2), and turning it by the angle of its position is
z_i e^(i angle). The derivative of a rotation is the rotation back: the product with the conjugate, e^(−i angle).
The composition, four products of halves, is `apply_rotary` in models/blocks/rope.py; over halves of 16 numbers NumPy
spends its time on starting inner loops, and the complex product is twice as fast.

    uv run python -c "from v3_numpy_deep.autograd.fused.rope import apply_rotary; help(apply_rotary)"
"""

import numpy as np
from jaxtyping import Float

from v3_numpy_deep.autograd.tensor import Array, Tensor, record


def apply_rotary(
    x: Float[Tensor, "B H T D"], cos: Float[Array, "#B T half"], sin: Float[Array, "#B T half"]
) -> Float[Tensor, "B H T D"]:
    """Turn each pair of x by its angle;  ∂x = g turned back"""
    return record(_turn(x.data, cos, sin), (x,), lambda g: (_turn(g, cos, -sin),))


def _turn(x: Array, cos: Array, sin: Array) -> Array:
    """The rotation, one sequence at a time. The result has the memory order [B, T, H, D]."""
    B, H, T, D = x.shape
    half = D // 2
    y = np.empty((B, T, H, D), x.dtype)
    z = np.empty((T, H, half), np.result_type(x.dtype, np.complex64))
    turn = np.empty((T, 1, half), z.dtype)  # the same for all heads
    for b in range(B):
        sequence = x[b].transpose(1, 0, 2)
        z.real, z.imag = sequence[..., :half], sequence[..., half:]
        if b < len(cos):  # positions may be the same for all sequences
            turn.real, turn.imag = cos[b, :, None], sin[b, :, None]
        z *= turn
        y[b, ..., :half], y[b, ..., half:] = z.real, z.imag
    return y.transpose(0, 2, 1, 3)
