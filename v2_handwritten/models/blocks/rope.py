"""Rotary position embedding (Su et al. 2021, RoFormer, section 3.2.2): positions as rotations of queries and keys.

A head of size D is D/2 pairs; at position p, pair i turns by the angle p · θ^(-2i/D). A dot product of two rotated
vectors depends only on the difference of their positions. Hugging Face pairs dimension i with i + D/2 ("halves"), Meta's
and llama.cpp's checkpoints pair 2i with 2i + 1 ("interleaved"); the two differ by a permutation of the rows of W_q, W_k.

Level 1: transformers' `LlamaRotaryEmbedding` and `apply_rotary_pos_emb`. Level 3: the same functions over NumPy.

    python -c "from v2_handwritten.models.blocks.rope import *; from shared_data.model_files.config import ModelConfig; print(rotary_frequencies(ModelConfig()))"
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shared_data.model_files.config import ModelConfig


def rotary_frequencies(config: ModelConfig) -> Float[np.ndarray, "half"]:
    """Radians per position for each pair of a head, float64; with the scaling that long-context checkpoints ask for.

    "linear" divides all frequencies by a factor (Chen et al. 2023). "llama3" (Llama 3.1) divides only those whose
    wavelength exceeds the context the model was first trained on, and blends in between.
    """
    frequencies = config.rope_theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    scaling = config.rope_scaling or {"rope_type": "default"}
    if scaling["rope_type"] == "linear":
        return frequencies / scaling["factor"]
    if scaling["rope_type"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        # How often a pair turns around within the original context decides how much of its frequency is kept.
        turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return keep * frequencies + (1 - keep) * frequencies / scaling["factor"]
    return frequencies


def rotary_tables(
    frequencies: Float[np.ndarray, "half"],
    position_ids: Int[Tensor, "B T"],
    dtype: torch.dtype = torch.float32,
) -> tuple[Float[Tensor, "B T half"], Float[Tensor, "B T half"]]:
    """cos and sin of every angle, computed in float64: at position 100,000 a float32 angle is off by 0.004 radians."""
    turn = torch.from_numpy(frequencies).to(position_ids.device)
    angles = position_ids.double().unsqueeze(-1) * turn
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(
    x: Float[Tensor, "B H T D"], cos: Float[Tensor, "#B T half"], sin: Float[Tensor, "#B T half"]
) -> Float[Tensor, "B H T D"]:
    """Turn the pairs (x_i, x_{i + D/2}) of each head by the angle of its position."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # the same for all heads
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(x.dtype)


def interleaved_to_half(weight: Float[np.ndarray, "O *I"], num_heads: int) -> Float[np.ndarray, "O *I"]:
    """Reorder the rows of W_q or W_k (or their biases) from interleaved pairs (Meta, llama.cpp) to halves (Hugging Face)."""
    rows = weight.reshape(num_heads, -1, 2, *weight.shape[1:])  # [H, D/2, 2, …]
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(weight.shape)


def half_to_interleaved(weight: Float[np.ndarray, "O *I"], num_heads: int) -> Float[np.ndarray, "O *I"]:
    """The inverse of `interleaved_to_half`."""
    rows = weight.reshape(num_heads, 2, -1, *weight.shape[1:])  # [H, 2, D/2, …]
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(weight.shape)
