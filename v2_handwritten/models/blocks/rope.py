"""Rotary position embedding (Su et al. 2021, RoFormer, section 3.2.2): positions as rotations of queries and keys.

A head of size D is D/2 pairs; at position p, pair i turns by the angle p · θ^(-2i/D). A dot product of two rotated
vectors depends only on the difference of their positions. The frequencies, and the order of a head's dimensions in other
checkpoints, stand in shared_data/model_files/rope.py. Theory: rope.md.

Level 1: transformers' `LlamaRotaryEmbedding` and `apply_rotary_pos_emb`. Level 3: the same functions over NumPy.

    uv run python -c "import numpy as np, torch; from v2_handwritten.models.blocks.rope import *; print(rotary_tables(np.array([1.0, 0.1]), torch.tensor([[0, 1, 2]])))"
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shared_data.device import widest_float


def rotary_tables(
    frequencies: Float[np.ndarray, "half"],
    position_ids: Int[Tensor, "B T"],
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
) -> tuple[Float[Tensor, "B T half"], Float[Tensor, "B T half"]]:
    """cos and sin of every angle, times `scale`, computed in float64: at position 100,000 a float32 angle is off by 0.004 radians.

    (An Apple GPU has float32 only.)
    """
    wide, device = widest_float(position_ids.device), position_ids.device
    turn = torch.from_numpy(frequencies).to(wide).to(device)
    angles = position_ids.to(wide).unsqueeze(-1) * turn
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def apply_rotary(
    x: Float[Tensor, "B H T D"], cos: Float[Tensor, "#B T half"], sin: Float[Tensor, "#B T half"]
) -> Float[Tensor, "B H T D"]:
    """Turn the pairs (x_i, x_{i + D/2}) of each head by the angle of its position."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # the same for all heads
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(x.dtype)
