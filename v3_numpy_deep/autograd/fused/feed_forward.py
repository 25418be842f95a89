"""GELU and SwiGLU, computed in blocks of rows that stay in the cache (blocks.py).

    GELU, GPT-2's form (Hendrycks & Gimpel 2016)   y = x (1 + t) / 2        with t = tanh(√(2/π) (x + 0.044715 x³))
    SwiGLU (Shazeer 2020, equation 6)              y = gate σ(gate) · up    with σ(x) = (1 + tanh(x/2)) / 2

The logistic function through tanh is one vectorised call that cannot overflow. The compositions are the functions of the same
names in models/blocks/feed_forward.py. Level 2 has the same derivatives as `torch.autograd.Function`s.

    uv run python -c "from v3_numpy_deep.autograd.fused.feed_forward import swiglu; help(swiglu)"
"""

import math

import numpy as np
from jaxtyping import Float

from v3_numpy_deep.autograd.fused.blocks import row_blocks
from v3_numpy_deep.autograd.tensor import Array, Tensor, record

# A Python number: a NumPy float64 scalar would promote float32 arrays.
ROOT_2_OVER_PI = math.sqrt(2.0 / math.pi)


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
            _tanh_of_gelu(v, out=t)  # again: cheaper than keeping a second array of this size
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
    """gate σ(gate) · up, the two side by side in the last axis;  with silu = gate σ:

    ∂up = g silu,  ∂gate = g up (σ + silu (1 − σ)) = g up (silu + σ (1 − silu))
    """
    shape = gate_up.shape
    X, F = gate_up.data.reshape(-1, shape[-1]), shape[-1] // 2
    y = np.empty((len(X), F), X.dtype)
    for rows in row_blocks(*y.shape):
        silu, _ = silu_and_two_sigma(X[rows, :F], out=y[rows])
        silu *= X[rows, F:]

    def derivative(g: Array) -> tuple[Array]:
        G = g.reshape(-1, F)
        grad_x = np.empty_like(X)
        for rows in row_blocks(*G.shape):
            silu, two_sigma = silu_and_two_sigma(X[rows, :F], out=np.empty_like(G[rows]))
            np.multiply(silu, G[rows], out=grad_x[rows, F:])
            two_sigma *= 1.0 - silu
            two_sigma *= 0.5
            silu += two_sigma
            silu *= X[rows, F:]
            np.multiply(silu, G[rows], out=grad_x[rows, :F])
        return (grad_x.reshape(shape),)

    return record(y.reshape(*shape[:-1], F), (gate_up,), derivative)


def silu_and_two_sigma(x: Array, out: Array) -> tuple[Array, Array]:
    """x σ(x) = (x/2) (1 + tanh(x/2)), written to `out`, and the second factor, which is 2 σ(x)."""
    np.multiply(x, 0.5, out=out)
    two_sigma = np.tanh(out)
    two_sigma += 1.0
    out *= two_sigma
    return out, two_sigma
