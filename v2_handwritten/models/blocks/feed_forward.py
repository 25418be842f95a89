"""The feed-forward layer: two matrices with a GELU between (GPT-2), or three with a gated SiLU, SwiGLU (Llama).

    GPT-2   y = gelu(x W_fc + b_fc) W_proj + b_proj            gelu: Hendrycks & Gimpel 2016, the tanh form ("gelu_new")
    Llama   y = (silu(x W_gateᵀ) · (x W_upᵀ)) W_downᵀ          SwiGLU: Shazeer 2020, equation 6; GEGLU (Gemma) has gelu for silu

The derivatives of the elementwise part stand in kernels/fused/feed_forward.py, derived in feed_forward.md.

Level 1: transformers' `GPT2MLP` and `LlamaMLP`. Level 3: the same over its own autograd.

    uv run python -c "from v2_handwritten.models.blocks.feed_forward import *; print(gelu_new(torch.tensor([-1.0, 1.0])))"
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shared_data.model_files.config import ModelConfig
from v2_handwritten.kernels import kernel
from v2_handwritten.models.blocks.dropout import dropout
from v2_handwritten.models.blocks.linear import Conv1D, Linear, merged_linear


def gelu_new(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))), GPT-2's approximation of x · Φ(x)."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x · Φ(x), with the exact normal distribution function."""
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def silu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x · sigmoid(x)."""
    return x * torch.sigmoid(x)


def swiglu(gate_up: Float[Tensor, "*rows twoF"]) -> Float[Tensor, "*rows F"]:
    """silu(gate) · up, where the two stand side by side in the last axis."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up


def geglu(gate_up: Float[Tensor, "*rows twoF"]) -> Float[Tensor, "*rows F"]:
    """gelu_new(gate) · up (Shazeer 2020; Gemma)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return gelu_new(gate) * up


class Gpt2FeedForward(nn.Module):
    """C → F → C with a GELU between."""

    kernels = "fused"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = Conv1D(config.hidden_size, config.intermediate_size)
        self.c_proj = Conv1D(config.intermediate_size, config.hidden_size)
        self.activation = gelu if config.hidden_act == "gelu" else gelu_new
        self.dropout = config.resid_pdrop

    def forward(
        self, x: Float[Tensor, "*rows C"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "*rows C"]:
        """`generator` draws the dropout masks."""
        y = self.c_proj(kernel(self.kernels, self.activation)(self.c_fc(x)))
        return dropout(y, self.dropout, self.training, generator)


class LlamaFeedForward(nn.Module):
    """C → F twice, one gating the other, → C. Gate and up are one matrix product. `intermediate_size`: another F than the model's."""

    kernels = "fused"

    def __init__(self, config: ModelConfig, intermediate_size: int | None = None) -> None:
        super().__init__()
        C, F = config.hidden_size, intermediate_size or config.intermediate_size
        self.gate_proj = Linear(C, F, bias=config.mlp_bias)
        self.up_proj = Linear(C, F, bias=config.mlp_bias)
        self.down_proj = Linear(F, C, bias=config.mlp_bias)
        self.activation = geglu if config.hidden_act == "gelu_new" else swiglu

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        """(act(x W_gateᵀ) · (x W_upᵀ)) W_downᵀ"""
        gate_up = kernel(self.kernels, merged_linear)(x, [self.gate_proj, self.up_proj])
        return self.down_proj(kernel(self.kernels, self.activation)(gate_up))
