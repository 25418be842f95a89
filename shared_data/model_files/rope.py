"""What a configuration and a checkpoint say about rotary positions: the frequencies, and the order of a head's dimensions.

Position p turns pair i of a head of size D by the angle p · θ^(−2i/D) (Su et al. 2021, section 3.2.2). Long-context checkpoints change
these frequencies (`rope_scaling`; what it may say stands in rope_scaling.py). Hugging Face pairs dimension i with i + D/2 ("halves");
Meta's and llama.cpp's checkpoints pair 2i with 2i + 1 ("interleaved"). The two differ by a permutation of the rows of W_q and W_k. The
rotation itself stands in models/blocks/rope.py of each level.

    uv run python -c "from shared_data.model_files.rope import *; from shared_data.model_files.config import ModelConfig; print(rotary_frequencies(ModelConfig()))"
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from shared_data.model_files.config import ModelConfig

Frequencies = Float[np.ndarray, "half"]


def rotary_frequencies(config: ModelConfig, length: int | None = None) -> Frequencies:
    """Radians per position for each pair of a head, float64, scaled as `config.rope_scaling` asks.

    length: tokens from the first position to the last of this forward pass. Only "dynamic" asks: it leaves the model alone up to
    `max_position_embeddings` and raises the base with the length from there on.
    """
    D, theta, scaling = config.head_dim, config.rope_theta, config.rope_scaling or {}
    kind = scaling.get("rope_type", "default")
    if kind == "dynamic":
        # NTK-aware scaling (bloc97 and emozilla 2023): the slowest pair turns f L/M - (f - 1) times as slowly, the fastest as before.
        stretch = max(length or 0, config.max_position_embeddings) / config.max_position_embeddings
        factor = scaling["factor"]
        theta = theta * (factor * stretch - (factor - 1)) ** (D / (D - 2))
    frequencies = theta ** (-np.arange(0, D, 2, dtype=np.float64) / D)
    if kind == "linear":  # Chen et al. 2023: positions between those that the model was trained on
        return frequencies / scaling["factor"]
    if kind == "llama3":
        return _llama3(frequencies, scaling)
    if kind == "yarn":
        return _yarn(frequencies, scaling, theta)
    return frequencies


def _llama3(frequencies: Frequencies, scaling: dict[str, Any]) -> Frequencies:
    """Llama 3.1: how often a pair turns around within the original context decides how much of its frequency is kept."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / scaling["factor"]


def _yarn(frequencies: Frequencies, scaling: dict[str, Any], theta: float) -> Frequencies:
    """Peng et al. 2023 (YaRN), section 3.2: the same idea, with a ramp over the number of the pair instead of its turns."""
    half, original = len(frequencies), scaling["original_max_position_embeddings"]

    def pair_that_turns(times: float) -> float:
        """The (fractional) number of the pair that turns around so often within the original context."""
        return half * math.log(original / (2 * math.pi * times)) / math.log(theta)

    # Pairs before `first` keep their frequency, those after `last` are interpolated.
    first = pair_that_turns(scaling.get("beta_fast") or 32)
    last = pair_that_turns(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * half - 1)
    interpolate = np.clip((np.arange(half) - first) / (last - first or 0.001), 0.0, 1.0)
    return (1 - interpolate) * frequencies + interpolate * frequencies / scaling["factor"]


def rotary_scale(config: ModelConfig) -> float:
    """What cosines and sines are multiplied with, so that scores are by its square: of "yarn", 0.1 ln(factor) + 1; else 1.

    The softmax over more keys than in training is flatter; larger scores sharpen it (YaRN, equation 22). A checkpoint may name the number
    itself (`attention_factor`), or two weights whose quotient it is (DeepSeek's `mscale`, `mscale_all_dim`).
    """
    scaling = config.rope_scaling or {}
    if scaling.get("rope_type") != "yarn":
        return 1.0
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    mscale, mscale_all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if mscale and mscale_all_dim:
        return _yarn_scale(scaling["factor"], mscale) / _yarn_scale(scaling["factor"], mscale_all_dim)
    return _yarn_scale(scaling["factor"])


def attention_scale(config: ModelConfig) -> float:
    """What the scores q kᵀ / √D are multiplied with besides: 1 in most models.

    Gemma 2 divides by √`query_pre_attn_scalar` instead of √D. DeepSeek, whose keys are rotated in part only, puts yarn's factor here: it
    reaches the whole score, with `mscale_all_dim` as its weight.
    """
    if config.query_pre_attn_scalar:
        return math.sqrt(config.head_dim / config.query_pre_attn_scalar)
    scaling = config.rope_scaling or {}
    if not config.kv_lora_rank or not scaling.get("mscale_all_dim"):
        return 1.0
    return _yarn_scale(scaling["factor"], scaling["mscale_all_dim"]) ** 2


def _yarn_scale(factor: float, weight: float = 1.0) -> float:
    """0.1 · weight · ln(factor) + 1"""
    return 0.1 * weight * math.log(factor) + 1.0


def interleaved_to_half(weight: Float[np.ndarray, "O *I"], num_heads: int) -> Float[np.ndarray, "O *I"]:
    """Reorder the rows of W_q or W_k (or their biases) from interleaved pairs (Meta, llama.cpp) to halves (Hugging Face)."""
    rows = weight.reshape(num_heads, -1, 2, *weight.shape[1:])  # [H, D/2, 2, …]
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(weight.shape)


def half_to_interleaved(weight: Float[np.ndarray, "O *I"], num_heads: int) -> Float[np.ndarray, "O *I"]:
    """The inverse of `interleaved_to_half`."""
    rows = weight.reshape(num_heads, 2, -1, *weight.shape[1:])  # [H, 2, D/2, …]
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(weight.shape)
