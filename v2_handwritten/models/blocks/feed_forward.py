"""The feed-forward layer: two matrices with a GELU between (GPT-2), or three with a gated SiLU, SwiGLU (Llama).

    GPT-2   y = gelu(x W_fc + b_fc) W_proj + b_proj            gelu: Hendrycks & Gimpel 2016, the tanh form ("gelu_new")
    Llama   y = (silu(x W_gateᵀ) · (x W_upᵀ)) W_downᵀ          SwiGLU: Shazeer 2020, equation 6

The elementwise part comes twice: `plain_…` with autograd's derivative, and fused, with the derivative written by hand and
no more than the input kept for it (derived in feed_forward.md).

Level 1: transformers' `GPT2MLP` and `LlamaMLP`. Level 3: the same over `autograd.fused`.

    python -c "import torch; from v2_handwritten.models.blocks.feed_forward import *; print(gelu_new(torch.tensor([-1.0, 1.0])))"
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shared_data.model_files.config import ModelConfig
from v2_handwritten.models.blocks.dropout import dropout
from v2_handwritten.models.blocks.linear import Conv1D, Linear, fused_linear

_CHUNK_ELEMENTS = 2**17  # of one array; three or four float32 arrays of this size fit a core's cache
_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


def plain_gelu_new(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))), GPT-2's approximation of x · Φ(x)."""
    return 0.5 * x * (1 + torch.tanh(_SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)))


def gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x · Φ(x), with the exact normal distribution function."""
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def silu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x · sigmoid(x)."""
    return x * torch.sigmoid(x)


def plain_swiglu(gate_up: Float[Tensor, "*rows twoF"]) -> Float[Tensor, "*rows F"]:
    """silu(gate) · up, where the two stand side by side in the last axis."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up


def gelu_new(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`plain_gelu_new`, fused."""
    return _GeluNew.apply(x)


def swiglu(gate_up: Float[Tensor, "*rows twoF"]) -> Float[Tensor, "*rows F"]:
    """`plain_swiglu`, fused."""
    return _SwiGLU.apply(gate_up)


class _GeluNew(torch.autograd.Function):
    """½ (1 + tanh u) is sigmoid(2 u), which makes the formula as short as SiLU's. With s = sigmoid(2 u):

    y = x s,  dx = dy (s + x · 2u' · s (1 - s)),  2u = x (2c + 2ca x²),  2u' = 2c + 6ca x²,  c = √(2/π),  a = 0.044715
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        inputs, outputs = x.view(-1, x.shape[-1]), y.view(-1, x.shape[-1])
        for rows in _chunks(inputs):
            _gelu_sigmoid(inputs[rows], out=outputs[rows]).mul_(inputs[rows])
        return y

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        d_x = torch.empty_like(x)
        inputs, d_inputs, d_outputs = (array.reshape(-1, x.shape[-1]) for array in (x, d_x, d_y))
        constant = x.new_tensor(2 * _SQRT_2_OVER_PI)
        for rows in _chunks(inputs):
            x_rows = inputs[rows]
            s = _gelu_sigmoid(x_rows)  # again: cheaper than keeping a second array of this size
            slope = torch.addcmul(constant, x_rows, x_rows, value=6 * 0.044715 * _SQRT_2_OVER_PI).mul_(x_rows)
            slope.mul_(torch.addcmul(s, s, s, value=-1))  # s - s²
            torch.mul(slope.add_(s), d_outputs[rows], out=d_inputs[rows])
        return d_x


def _gelu_sigmoid(x: Tensor, out: Tensor | None = None) -> Tensor:
    """sigmoid(2 u) = ½ (1 + tanh u), in three passes over the array."""
    constant = x.new_tensor(2 * _SQRT_2_OVER_PI)
    return torch.addcmul(constant, x, x, value=2 * 0.044715 * _SQRT_2_OVER_PI, out=out).mul_(x).sigmoid_()


class _SwiGLU(torch.autograd.Function):
    """With s = sigmoid(gate) and silu = gate s:  d up = dy silu,  d gate = dy up (s + silu (1 - s))."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gates, ups = gate_up.view(-1, gate_up.shape[-1]).chunk(2, dim=-1)
        y = gates.new_empty(gates.shape)
        for rows in _chunks(gates):
            torch.sigmoid(gates[rows], out=y[rows]).mul_(gates[rows]).mul_(ups[rows])
        return y.view(*gate_up.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        d_gate_up = torch.empty_like(gate_up)
        gates, ups = gate_up.view(-1, gate_up.shape[-1]).chunk(2, dim=-1)
        d_gates, d_ups = d_gate_up.view(-1, gate_up.shape[-1]).chunk(2, dim=-1)
        d_rows = d_y.reshape(gates.shape)
        one = gate_up.new_ones(())
        for rows in _chunks(gates):
            s = torch.sigmoid(gates[rows])
            silu_gate = gates[rows] * s
            torch.mul(d_rows[rows], silu_gate, out=d_ups[rows])
            slope = torch.lerp(s, one, silu_gate, out=silu_gate)  # s + silu (1 - s)
            torch.mul(slope.mul_(d_rows[rows]), ups[rows], out=d_gates[rows])
        return d_gate_up


def _chunks(x: Tensor) -> Iterator[slice]:
    """Slices of rows, small enough that the intermediate arrays of an elementwise formula stay in the cache."""
    step = max(1, _CHUNK_ELEMENTS // x.shape[-1]) if x.device.type == "cpu" else max(1, x.shape[0])
    return (slice(start, start + step) for start in range(0, x.shape[0], step))


class Gpt2FeedForward(nn.Module):
    """C → F → C with a GELU between."""

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
        return dropout(self.c_proj(self.activation(self.c_fc(x))), self.dropout, self.training, generator)


class LlamaFeedForward(nn.Module):
    """C → F twice, one gating the other, → C. Gate and up are one matrix product."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C, F = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(C, F, bias=config.mlp_bias)
        self.up_proj = Linear(C, F, bias=config.mlp_bias)
        self.down_proj = Linear(F, C, bias=config.mlp_bias)

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        """(silu(x W_gateᵀ) · (x W_upᵀ)) W_downᵀ"""
        return self.down_proj(swiglu(fused_linear(x, [self.gate_proj, self.up_proj])))
