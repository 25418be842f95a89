"""Rotary position embedding (Su et al. 2021, RoFormer, section 3.2.2): positions as rotations of queries and keys.

A head of size D is D/2 pairs; at position p, pair i turns by the angle p · θ^(-2i/D). A dot product of two rotated
vectors depends only on the difference of their positions. Hugging Face pairs dimension i with i + D/2 ("halves"), Meta's
and llama.cpp's checkpoints pair 2i with 2i + 1 ("interleaved"); the two differ by a permutation of the rows of W_q, W_k.

Level 1: transformers' `LlamaRotaryEmbedding` and `apply_rotary_pos_emb`. Level 2: the same functions over torch.

    python -c "from v3_numpy_deep.models.blocks.rope import *; from shared_data.model_files.config import ModelConfig; print(rotary_frequencies(ModelConfig()))"
"""

import math

import numpy as np
from jaxtyping import Float, Int

from shared_data.model_files.config import ModelConfig
from v3_numpy_deep.autograd import Array, Tensor
from v3_numpy_deep.autograd import operations as ops


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
    frequencies: Float[np.ndarray, "half"], position_ids: Int[Array, "B T"], dtype: type = np.float32
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """cos and sin of every angle, computed in float64: at position 100,000 a float32 angle is off by 0.004 radians."""
    angles = position_ids[..., None] * frequencies
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def apply_rotary(
    x: Float[Tensor, "B H T D"], cos: Float[Array, "#B T half"], sin: Float[Array, "#B T half"]
) -> Float[Tensor, "B H T D"]:
    """Turn the pairs (x_i, x_{i + D/2}) of each head by the angle of its position."""
    cos, sin = cos[:, None], sin[:, None]  # the same for all heads
    half = x.shape[-1] // 2
    first, second = ops.split(x, [half, half], axis=-1)
    return ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def interleaved_to_half(weight: Float[np.ndarray, "O *I"], num_heads: int) -> Float[np.ndarray, "O *I"]:
    """Reorder the rows of W_q or W_k (or their biases) from interleaved pairs (Meta, llama.cpp) to halves (Hugging Face)."""
    rows = weight.reshape(num_heads, -1, 2, *weight.shape[1:])  # [H, D/2, 2, …]
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(weight.shape)


def half_to_interleaved(weight: Float[np.ndarray, "O *I"], num_heads: int) -> Float[np.ndarray, "O *I"]:
    """The inverse of `interleaved_to_half`."""
    rows = weight.reshape(num_heads, 2, -1, *weight.shape[1:])  # [H, 2, D/2, …]
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(weight.shape)
