"""Llama's feed-forward layer (SwiGLU) of two tokens, as in v2_handwritten/models/blocks/feed_forward.md."""

import pytest
import torch

from shared_data.model_files.config import ModelConfig
from tests.worked import agrees
from v2_handwritten.models.blocks.feed_forward import LlamaFeedForward, silu, swiglu

PAGE = "v2_handwritten/models/blocks/feed_forward.md"

X = torch.tensor([[1.0, 2], [0, -1]])  # two tokens, C = 2
W_GATE = torch.tensor([[1.0, 0], [0, 1], [1, -1]])  # F = 3
W_UP = torch.tensor([[1.0, 1], [0, 1], [2, 0]])
W_DOWN = torch.tensor([[1.0, 0, 1], [0, 1, -1]])
D_Y = torch.tensor([[1.0, 0], [1, 1]])


def test_forward() -> None:
    gate, up = X @ W_GATE.T, X @ W_UP.T
    agrees(PAGE, "g", gate)
    agrees(PAGE, "u", up)
    agrees(PAGE, "silu(g)", silu(gate))
    h = swiglu(torch.cat([gate, up], dim=-1))
    torch.testing.assert_close(h, silu(gate) * up)
    agrees(PAGE, "h", h)
    agrees(PAGE, "y", h @ W_DOWN.T)


def test_derivative_of_the_middle() -> None:
    gate, up = X @ W_GATE.T, X @ W_UP.T
    s, d_h = torch.sigmoid(gate), D_Y @ W_DOWN
    slope = s + silu(gate) * (1 - s)
    agrees(PAGE, "dh", d_h)
    agrees(PAGE, "slope", slope)
    agrees(PAGE, "du", d_h * silu(gate))
    agrees(PAGE, "dg", d_h * up * slope)


@pytest.mark.parametrize("gradient", ["dx", "dW_gate", "dW_up", "dW_down"])
@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_gradients_of_the_layer(kernels: str, gradient: str) -> None:
    """The exercise of feed_forward.md."""
    layer = LlamaFeedForward(ModelConfig(hidden_size=2, intermediate_size=3, num_attention_heads=1))
    layer.kernels = kernels
    weights = {"gate_proj.weight": W_GATE, "up_proj.weight": W_UP, "down_proj.weight": W_DOWN}
    layer.load_state_dict(weights)
    x = X.clone().requires_grad_()
    layer(x).backward(D_Y)
    leaf = x if gradient == "dx" else getattr(layer, f"{gradient.removeprefix('dW_')}_proj").weight
    agrees(PAGE, gradient, leaf.grad)
