"""A query and a key of two planes at positions 0 to 3, as in v2_handwritten/models/blocks/rope.md."""

import numpy as np
import pytest
import torch
from torch import Tensor

from shared_data.model_files.config import ModelConfig
from shared_data.model_files.rope import rotary_frequencies
from tests.worked import agrees
from v2_handwritten.kernels import kernel
from v2_handwritten.models.blocks.rope import apply_rotary, rotary_tables

PAGE = "v2_handwritten/models/blocks/rope.md"

Q = torch.tensor([1.0, 2, 0, 0])  # D = 4: the pairs are (0, 2) and (1, 3)
K = torch.tensor([1.0, 1, 1, 0])
POSITIONS = torch.arange(4)
# 1 and 0.1.
FREQUENCIES = rotary_frequencies(ModelConfig(hidden_size=4, num_attention_heads=1, rope_theta=100.0))
COS, SIN = rotary_tables(FREQUENCIES, POSITIONS[None], torch.float64)  # [1, T, D/2]


def rotated(x: Tensor, kernels: str = "plain") -> Tensor:
    """x at every position: [T, D]."""
    same = x.double().expand(1, 1, len(POSITIONS), -1)  # [B, H, T, D]
    return kernel(kernels, apply_rotary)(same, COS, SIN)[0, 0]


def test_angles_and_rotated_vectors() -> None:
    agrees(PAGE, "angles", POSITIONS[:, None] * FREQUENCIES)
    agrees(PAGE, "rotated q", rotated(Q))
    agrees(PAGE, "rotated k", rotated(K))


def test_scores_depend_on_the_distance_only() -> None:
    scores = rotated(Q) @ rotated(K).T
    agrees(PAGE, "scores", scores)
    for distance in range(-3, 4):
        expected = np.cos(distance) + np.sin(distance) + 2 * np.cos(0.1 * distance)
        np.testing.assert_allclose(torch.diagonal(scores, -distance), expected)


def test_scaled_frequencies() -> None:
    def frequencies(length: int | None = None, **scaling: object) -> np.ndarray:
        config = ModelConfig(
            hidden_size=8,
            num_attention_heads=1,
            rope_theta=100.0,
            max_position_embeddings=64,
            rope_scaling=scaling or None,
        )
        found = rotary_frequencies(config, length)
        return np.append(found, 255 * found[-1])

    trained = {"factor": 4.0, "original_max_position_embeddings": 64}
    dynamic = [frequencies(length, rope_type="dynamic", factor=4.0) for length in (64, 128, 256)]
    rows = [frequencies(), frequencies(rope_type="linear", factor=4.0), *dynamic]
    rows.append(frequencies(rope_type="yarn", **trained))
    rows.append(frequencies(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0, **trained))
    agrees(PAGE, "radians per position", rows)


@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_the_gradient_is_turned_back(kernels: str) -> None:
    q = Q.clone().requires_grad_()
    d_y = torch.tensor([1.0, 0, 0, 1], dtype=torch.float64)
    rotated(q, kernels)[1].backward(d_y)
    assert q.grad is not None
    agrees(PAGE, "at position 1", torch.stack([d_y, q.grad]))
