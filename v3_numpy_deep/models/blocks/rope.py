"""Rotary position embedding (Su et al. 2021, RoFormer, section 3.2.2): positions as rotations of queries and keys.

A head of size D is D/2 pairs; at position p, pair i turns by the angle p · θ^(-2i/D). A dot product of two rotated
vectors depends only on the difference of their positions. The frequencies, and the order of a head's dimensions in other
checkpoints, stand in shared_data/model_files/rope.py.

Level 1: transformers' `LlamaRotaryEmbedding` and `apply_rotary_pos_emb`. Level 2: the same functions over torch.

    uv run python -c "import numpy as np; from v3_numpy_deep.models.blocks.rope import *; print(rotary_tables(np.array([1.0, 0.1]), np.array([[0, 1, 2]])))"
"""

import numpy as np
from jaxtyping import Float, Int

from v3_numpy_deep.autograd import Array, Tensor
from v3_numpy_deep.autograd import operations as ops


def rotary_tables(
    frequencies: Float[np.ndarray, "half"],
    position_ids: Int[Array, "B T"],
    dtype: type = np.float32,
    scale: float = 1.0,
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """cos and sin of every angle, times `scale`, computed in float64: at position 100,000 a float32 angle is off by 0.004 radians."""
    angles = position_ids[..., None] * frequencies
    return (np.cos(angles) * scale).astype(dtype), (np.sin(angles) * scale).astype(dtype)


def apply_rotary(
    x: Float[Tensor, "B H T D"], cos: Float[Array, "#B T half"], sin: Float[Array, "#B T half"]
) -> Float[Tensor, "B H T D"]:
    """Turn the pairs (x_i, x_{i + D/2}) of each head by the angle of its position."""
    cos, sin = cos[:, None], sin[:, None]  # the same for all heads
    half = x.shape[-1] // 2
    first, second = ops.split(x, [half, half], axis=-1)
    return ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
