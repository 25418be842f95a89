"""Level 2 and the library: rotary frequencies, tables and rotations; the permutation between the two layouts of checkpoints."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.deepseek_v3.modeling_deepseek_v3 import yarn_apply_mscale
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from shared_data.model_files.config import ModelConfig
from shared_data.model_files.rope import (
    attention_scale,
    half_to_interleaved,
    interleaved_to_half,
    rotary_frequencies,
    rotary_scale,
)
from tests.parity.arrays import array
from tests.parity.block_checks import compare_functions, each_kernel
from tests.parity.model_cases import LLAMA3_SCALING, config_of, library_config
from tests.parity.recorder import ParityRecorder
from v2_handwritten.kernels import kernel
from v2_handwritten.models.blocks.rope import apply_rotary, rotary_tables

LLAMA31 = ModelConfig(
    hidden_size=512,
    num_attention_heads=4,
    rope_theta=500_000.0,
    max_position_embeddings=131072,
    rope_scaling=LLAMA3_SCALING | {"original_max_position_embeddings": 8192},
)
YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}


def scaled(**rope_scaling: Any) -> ModelConfig:
    """A model with heads of 64."""
    return ModelConfig(
        hidden_size=256, rope_theta=150_000.0, max_position_embeddings=131072, rope_scaling=rope_scaling
    )


CONFIGS = {
    "default": config_of("llama GQA"),
    "linear": config_of("llama GQA, linear rope"),
    "llama3": config_of("llama GQA, llama3 rope"),
    "llama3, D = 128": LLAMA31,
    "dynamic": scaled(rope_type="dynamic", factor=4.0),
    "yarn": scaled(**YARN),
    "yarn, not truncated": scaled(**YARN, truncate=False),
    "yarn, other ramp": scaled(**YARN, beta_fast=4.0, beta_slow=4),  # both ends are the same pair
    "yarn, everything turns fast": scaled(**YARN | {"original_max_position_embeddings": 10**9}),
    "yarn, nothing does": scaled(**YARN | {"original_max_position_embeddings": 1}),
    "yarn, mscale": scaled(**YARN, mscale=1.0, mscale_all_dim=0.7),
    "yarn, one mscale": scaled(**YARN, mscale=0.7),
    "yarn, attention factor": scaled(**YARN, attention_factor=1.5),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_frequencies_and_their_scale_equal_the_library(parity: ParityRecorder, name: str) -> None:
    config = CONFIGS[name]
    library = LlamaRotaryEmbedding(library_config(config))
    parity(
        component=f"rope, {name}",
        quantity="frequencies, relative",
        levels="v2-v1",
        actual=rotary_frequencies(config) / library.inv_freq.double().numpy(),
        expected=np.ones(config.head_dim // 2),
        tolerance=2e-6,  # the library computes in float32; its blend of two frequencies cancels digits
    )
    assert rotary_scale(config) == pytest.approx(library.attention_scaling, rel=1e-15)


@pytest.mark.parametrize("length", [1, 1000, 131071, 131072, 131073, 200_000, 524_288])
def test_dynamic_frequencies_equal_the_library_at_every_length(parity: ParityRecorder, length: int) -> None:
    config = CONFIGS["dynamic"]
    library = LlamaRotaryEmbedding(library_config(config))
    library(torch.zeros(1), torch.tensor([[length - 1]]))  # its frequencies change as it looks at positions
    parity(
        component=f"rope, dynamic, {length} tokens",
        quantity="frequencies, relative",
        levels="v2-v1",
        actual=rotary_frequencies(config, length) / library.inv_freq.double().numpy(),
        expected=np.ones(config.head_dim // 2),
        tolerance=2e-6,
    )
    changed = not np.array_equal(rotary_frequencies(config, length), rotary_frequencies(config))
    assert changed == (length > 131072)


def test_latent_attention_puts_the_factor_of_yarn_on_its_scores() -> None:
    for scaling in (
        {**YARN, "mscale_all_dim": 0.7},
        {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        YARN,
        None,
    ):
        config = ModelConfig(
            model_type="deepseek_v3", num_local_experts=4, n_group=1, topk_group=1, rope_scaling=scaling
        )
        expected = yarn_apply_mscale({"rope_type": "default", **(scaling or {})}, 1.0)
        assert attention_scale(config) == pytest.approx(expected, rel=1e-15)


def test_tables_equal_the_library_where_its_float32_angles_are_good(parity: ParityRecorder) -> None:
    config = CONFIGS["default"]
    positions = torch.arange(64).unsqueeze(0)
    ours = rotary_tables(rotary_frequencies(config), positions, torch.float64)
    theirs = LlamaRotaryEmbedding(library_config(config))(torch.zeros(1).double(), positions)
    for quantity, actual, expected in zip(("cos", "sin"), ours, theirs, strict=True):
        parity(
            component="rope",
            quantity=quantity,
            levels="v2-v1",
            actual=torch.cat([actual, actual], -1),
            expected=expected,
            tolerance=2.5e-6,
        )


@each_kernel
def test_rotation_and_its_derivative_equal_the_library(parity: ParityRecorder, kernels: str) -> None:
    angles = torch.from_numpy(array(1, 2, 5, 4))
    cos, sin = angles.cos(), angles.sin()
    wide_cos, wide_sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
    x = torch.from_numpy(array(0, 2, 5, 3, 8)).transpose(1, 2)  # [B, H, T, D] as a projection leaves it
    compare_functions(
        parity,
        f"rope, {kernels}",
        lambda x: kernel(kernels, apply_rotary)(x, cos, sin),
        lambda x: apply_rotary_pos_emb(x, x, wide_cos, wide_sin)[0],
        {"x": x},
        2e-15,
    )


def test_dot_products_depend_only_on_the_distance_of_positions() -> None:
    """The exercise of rope.md."""
    q, k = (torch.from_numpy(array(seed, 1, 1, 1, 16)) for seed in (0, 1))
    frequencies = rotary_frequencies(ModelConfig(hidden_size=64))

    def at(x: torch.Tensor, position: int) -> torch.Tensor:
        cos, sin = rotary_tables(frequencies, torch.tensor([[position]]), torch.float64)
        return apply_rotary(x, cos, sin)

    products = [float((at(q, 7 + shift) * at(k, 3 + shift)).sum()) for shift in (0, 5, 1000, 100_000)]
    assert products == pytest.approx([products[0]] * 4, abs=1e-9)
    assert abs(float((at(q, 8) * at(k, 3)).sum()) - products[0]) > 1e-3


def test_permuted_weights_turn_interleaved_pairs_into_halves() -> None:
    """The dot products of Meta's layout with interleaved pairs are those of our layout with permuted rows."""
    H, D, C, T = 2, 8, 5, 6
    angles = np.arange(T)[:, None] * rotary_frequencies(ModelConfig(hidden_size=H * D, num_attention_heads=H))
    w_q, w_k, x = array(0, H * D, C), array(1, H * D, C), array(2, T, C)

    def interleaved_scores() -> np.ndarray:
        pairs = [(x @ w.T).reshape(T, H, D // 2, 2) for w in (w_q, w_k)]
        q, k = ((p[..., 0] + 1j * p[..., 1]) * np.exp(1j * angles)[:, None] for p in pairs)
        return np.einsum("thd,shd->hts", q, k.conj()).real

    def half_scores() -> torch.Tensor:
        cos, sin = torch.from_numpy(np.cos(angles))[None], torch.from_numpy(np.sin(angles))[None]
        q, k = (
            apply_rotary(
                torch.from_numpy((x @ interleaved_to_half(w, H).T).reshape(1, T, H, D)).transpose(1, 2),
                cos,
                sin,
            )
            for w in (w_q, w_k)
        )
        return (q @ k.transpose(-1, -2))[0]

    np.testing.assert_allclose(half_scores().numpy(), interleaved_scores(), atol=1e-13)
    assert np.array_equal(half_to_interleaved(interleaved_to_half(w_q, H), H), w_q)
    assert np.array_equal(interleaved_to_half(array(3, H * D), H)[:3], array(3, H * D)[[0, 2, 4]])  # a bias


def test_angles_far_from_the_origin_keep_their_digits() -> None:
    frequencies = rotary_frequencies(ModelConfig(hidden_size=64))
    cos, _ = rotary_tables(frequencies, torch.tensor([[100_001]]), torch.float32)
    exact = [math.cos(100_001 * f) for f in frequencies]
    assert cos.flatten().tolist() == pytest.approx(exact, abs=1e-7)
