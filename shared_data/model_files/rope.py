"""What a configuration and a checkpoint say about rotary positions: the frequencies, and the order of a head's dimensions.

Position p turns pair i of a head of size D by the angle p · θ^(−2i/D) (Su et al. 2021, section 3.2.2). Hugging Face pairs dimension i
with i + D/2 ("halves"); Meta's and llama.cpp's checkpoints pair 2i with 2i + 1 ("interleaved"). The two differ by a permutation of
the rows of W_q and W_k. The rotation itself stands in models/blocks/rope.py of each level.

    uv run python -c "from shared_data.model_files.rope import *; from shared_data.model_files.config import ModelConfig; print(rotary_frequencies(ModelConfig()))"
"""

import math

import numpy as np
from jaxtyping import Float

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


def interleaved_to_half(weight: Float[np.ndarray, "O *I"], num_heads: int) -> Float[np.ndarray, "O *I"]:
    """Reorder the rows of W_q or W_k (or their biases) from interleaved pairs (Meta, llama.cpp) to halves (Hugging Face)."""
    rows = weight.reshape(num_heads, -1, 2, *weight.shape[1:])  # [H, D/2, 2, …]
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(weight.shape)


def half_to_interleaved(weight: Float[np.ndarray, "O *I"], num_heads: int) -> Float[np.ndarray, "O *I"]:
    """The inverse of `interleaved_to_half`."""
    rows = weight.reshape(num_heads, 2, -1, *weight.shape[1:])  # [H, 2, D/2, …]
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(weight.shape)
