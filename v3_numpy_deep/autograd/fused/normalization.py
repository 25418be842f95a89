"""RMSNorm and LayerNorm over the last axis, each with its derivative in one formula.

LayerNorm (Ba et al. 2016, equation 4) subtracts the mean and divides by the standard deviation; RMSNorm (Zhang & Sennrich
2019, equation 4) only divides by the root of the mean square. Write n = x̂ for the normalized vector, r for the factor
1/√(mean square + ε) or 1/√(variance + ε), and h = g · w for the gradient that reaches n. Then

    RMSNorm    ∂x = r (h − n · mean(h n))
    LayerNorm  ∂x = r (h − mean(h) − n · mean(h n))
    both       ∂w = Σ rows of g n        ∂b = Σ rows of g

In words: normalizing removes the scale of x (and its mean), so no gradient can flow along n (and along the ones).
The compositions are the functions of the same names in models/blocks/normalization.py. Level 2 has the same derivatives as
`torch.autograd.Function`s; level 1 calls `torch.nn.RMSNorm` and `torch.nn.LayerNorm`.

    uv run python -c "from v3_numpy_deep.autograd.fused.normalization import rms_norm; help(rms_norm)"
"""

import numpy as np
from jaxtyping import Float

from v3_numpy_deep.autograd.fused.blocks import row_blocks
from v3_numpy_deep.autograd.fused.linear import column_sums
from v3_numpy_deep.autograd.tensor import Array, Tensor, record


def rms_norm(x: Float[Tensor, "*rows C"], weight: Float[Tensor, "C"], eps: float) -> Float[Tensor, "*rows C"]:
    """w · x / √(mean(x²) + ε)"""
    shape, w = x.shape, weight.data
    X = x.data.reshape(-1, shape[-1])
    r = _inverse_root(np.vecdot(X, X) / X.shape[1], eps)
    y = np.empty_like(X)
    for rows in row_blocks(*X.shape):
        np.multiply(X[rows], r[rows], out=y[rows])
        y[rows] *= w

    def derivative(g: Array) -> tuple[Array, Array]:
        G = g.reshape(X.shape)
        grad_x, grad_weight = np.empty_like(X), np.zeros_like(w)
        for rows in row_blocks(*X.shape):
            n = X[rows] * r[rows]
            gn = G[rows] * n
            grad_weight += column_sums(gn)
            mean_hn = (gn @ w)[:, None] / len(w)  # h n = g w n
            h = np.multiply(G[rows], w, out=gn)
            n *= mean_hn
            h -= n
            np.multiply(h, r[rows], out=grad_x[rows])
        return grad_x.reshape(shape), grad_weight

    return record(y.reshape(shape), (x, weight), derivative)


def layer_norm(
    x: Float[Tensor, "*rows C"], weight: Float[Tensor, "C"], bias: Float[Tensor, "C"], eps: float
) -> Float[Tensor, "*rows C"]:
    """w · (x − mean) / √(variance + ε) + b"""
    shape, w = x.shape, weight.data
    X = x.data.reshape(-1, shape[-1])
    n = X - X.mean(axis=1, keepdims=True)
    r = _inverse_root(np.vecdot(n, n) / X.shape[1], eps)
    n *= r
    y = n * w
    y += bias.data

    def derivative(g: Array) -> tuple[Array, Array, Array]:
        G = g.reshape(n.shape)
        grad_x, grad_weight, grad_bias = np.empty_like(n), np.zeros_like(w), column_sums(G)
        for rows in row_blocks(*n.shape):
            gn = G[rows] * n[rows]
            grad_weight += column_sums(gn)
            mean_hn = (gn @ w)[:, None] / len(w)
            mean_h = (G[rows] @ w)[:, None] / len(w)
            h = np.multiply(G[rows], w, out=gn)
            h -= mean_h
            h -= n[rows] * mean_hn
            np.multiply(h, r[rows], out=grad_x[rows])
        return grad_x.reshape(shape), grad_weight, grad_bias

    return record(y.reshape(shape), (x, weight, bias), derivative)


def _inverse_root(mean_square: Array, eps: float) -> Array:
    """1 / √(mean square + ε), as a column."""
    mean_square += eps
    return (1.0 / np.sqrt(mean_square))[:, None]
