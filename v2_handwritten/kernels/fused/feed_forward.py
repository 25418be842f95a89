"""GELU and SwiGLU in few passes over memory, with the derivative by hand and no more than the input kept for it.

The elementwise formulas run over slices of rows that stay in a core's cache. Derivation: models/blocks/feed_forward.md.

Level 3: the same over NumPy.

    gelu_new(x)   # as models/blocks/feed_forward.py
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_CHUNK_ELEMENTS = 2**17  # of one array; three or four float32 arrays of this size fit a core's cache
_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


def gelu_new(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))"""
    return _GeluNew.apply(x)


def swiglu(gate_up: Float[Tensor, "*rows twoF"]) -> Float[Tensor, "*rows F"]:
    """silu(gate) · up"""
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
        for rows in row_chunks(inputs):
            _gelu_sigmoid(inputs[rows], out=outputs[rows]).mul_(inputs[rows])
        return y

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        d_x = torch.empty_like(x)
        inputs, d_inputs, d_outputs = (array.reshape(-1, x.shape[-1]) for array in (x, d_x, d_y))
        constant = x.new_tensor(2 * _SQRT_2_OVER_PI)
        for rows in row_chunks(inputs):
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
        for rows in row_chunks(gates):
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
        for rows in row_chunks(gates):
            s = torch.sigmoid(gates[rows])
            silu_gate = gates[rows] * s
            torch.mul(d_rows[rows], silu_gate, out=d_ups[rows])
            slope = torch.lerp(s, one, silu_gate, out=silu_gate)  # s + silu (1 - s)
            torch.mul(slope.mul_(d_rows[rows]), ups[rows], out=d_gates[rows])
        return d_gate_up


def row_chunks(x: Tensor) -> Iterator[slice]:
    """Slices of rows, small enough that the intermediate arrays of an elementwise formula stay in the cache."""
    step = max(1, _CHUNK_ELEMENTS // x.shape[-1]) if x.device.type == "cpu" else max(1, x.shape[0])
    return (slice(start, start + step) for start in range(0, x.shape[0], step))
