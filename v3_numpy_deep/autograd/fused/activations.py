"""GELU and SwiGLU, computed in blocks that stay in the cache.

    GELU, GPT-2's form (Hendrycks & Gimpel 2016)   y = x (1 + t) / 2     with t = tanh(√(2/π) (x + 0.044715 x³))
    SwiGLU (Shazeer 2020, equation 6)              y = gate σ(gate) · up

A ufunc reads and writes memory, and memory is what limits it: ten ufuncs over an array larger than the cache are ten trips
to memory; the same ten over blocks of 2^16 numbers are one. The compositions are `plain_gelu_new` and `plain_swiglu` in
models/blocks/feed_forward.py, where level 2 has the same derivatives as `torch.autograd.Function`s.

    python -c "from v3_numpy_deep.autograd.fused.activations import swiglu; help(swiglu)"
"""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from v3_numpy_deep.autograd.tensor import Array, Tensor, record

ROOT_2_OVER_PI = math.sqrt(
    2.0 / math.pi
)  # Python numbers: a NumPy float64 scalar would promote float32 arrays
BLOCK = 1 << 16  # numbers in a block: a float32 block is 256 KiB, and a few of them fit a level-2 cache


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Consecutive slices of rows, of at most BLOCK numbers each."""
    height = max(1, BLOCK // columns)
    return (slice(start, start + height) for start in range(0, rows, height))


def gelu_new(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x (1 + t) / 2;  ∂x = g ((1 + t) / 2 + x (1 − t²) u' / 2) with u' = √(2/π) (1 + 3 · 0.044715 x²)"""
    shape = x.shape
    X = x.data.reshape(-1, shape[-1])
    y = np.empty_like(X)
    for rows in row_blocks(*X.shape):
        v, out = X[rows], y[rows]
        _tanh_of_gelu(v, out=out)
        out += 1.0
        out *= v
        out *= 0.5

    def derivative(g: Array) -> tuple[Array]:
        G = g.reshape(X.shape)
        grad_x = np.empty_like(X)
        for rows in row_blocks(*X.shape):
            v, slope = X[rows], grad_x[rows]
            t = np.empty_like(v)
            _tanh_of_gelu(v, out=t)
            np.multiply(v, v, out=slope)
            slope *= 3.0 * 0.044715 * ROOT_2_OVER_PI
            slope += ROOT_2_OVER_PI
            slope *= v  # x u'
            slope -= slope * t * t
            slope += t
            slope += 1.0
            slope *= 0.5
            slope *= G[rows]
        return (grad_x.reshape(shape),)

    return record(y.reshape(shape), (x,), derivative)


def _tanh_of_gelu(x: Array, out: Array) -> None:
    """tanh(√(2/π) (x + 0.044715 x³)) = tanh(x (√(2/π) + √(2/π) 0.044715 x²))"""
    np.multiply(x, x, out=out)  # x**3 is 50 times slower than two products
    out *= 0.044715 * ROOT_2_OVER_PI
    out += ROOT_2_OVER_PI
    out *= x
    np.tanh(out, out=out)


def swiglu(gate_up: Float[Tensor, "*rows twoF"]) -> Float[Tensor, "*rows F"]:
    """gate σ(gate) · up, the two side by side in the last axis;
    ∂up = g gate σ,  ∂gate = g up σ (1 + gate (1 − σ))"""
    shape = gate_up.shape
    X = gate_up.data.reshape(-1, shape[-1])
    F = shape[-1] // 2
    y = np.empty((len(X), F), X.dtype)
    for rows in row_blocks(*y.shape):
        gate, up, out = X[rows, :F], X[rows, F:], y[rows]
        _sigmoid(gate, out=out)
        out *= gate
        out *= up

    def derivative(g: Array) -> tuple[Array]:
        G = g.reshape(y_shape)
        grad_x = np.empty_like(X)
        for rows in row_blocks(*y_shape):
            gate, up, grad_gate, grad_up = X[rows, :F], X[rows, F:], grad_x[rows, :F], grad_x[rows, F:]
            s = np.empty_like(G[rows])
            _sigmoid(gate, out=s)
            silu = gate * s
            np.multiply(silu, G[rows], out=grad_up)
            silu -= silu * s
            silu += s  # σ (1 + gate (1 − σ)) = σ + silu (1 − σ)
            silu *= up
            np.multiply(silu, G[rows], out=grad_gate)
        return (grad_x.reshape(shape),)

    y_shape = y.shape
    return record(y.reshape(*shape[:-1], F), (gate_up,), derivative)


def _sigmoid(x: Array, out: Array) -> None:
    """σ(x) = (1 + tanh(x / 2)) / 2: one vectorised call, and no overflow."""
    np.multiply(x, 0.5, out=out)
    np.tanh(out, out=out)
    out *= 0.5
    out += 0.5
