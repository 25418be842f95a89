"""The affine map y = x Wᵀ + b over the last axis, one matrix product for all positions of all sequences.

Derivative, with all positions as rows of X and G (n rows):  ∂X = G W,  ∂W = Gᵀ X,  ∂b = Σ rows of G.
∂W is one product of (out × n) by (n × in); summing a product for each sequence would write the weight's size B times.
From primitives it is `matmul(x, transpose(weight)) + bias`. Level 2 writes `x @ weight.T`, level 1 calls
`torch.nn.functional.linear`.

    python -c "from v3_numpy_deep.autograd.fused.linear import linear; help(linear)"
"""

import numpy as np
from jaxtyping import Float

from v3_numpy_deep.autograd.tensor import Array, Tensor, record


def linear(
    x: Float[Tensor, "*batch i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, "o"] | None = None
) -> Float[Tensor, "*batch o"]:
    """x Wᵀ + b, the weight stored as [out, in]."""
    shape, W = x.shape, weight.data
    needs_x, needs_weight = x.requires_grad, weight.requires_grad  # a frozen weight costs no product
    X = x.data.reshape(-1, shape[-1])
    Y = X @ W.T
    if bias is not None:
        Y += bias.data

    def derivative(g: Array) -> tuple[Array | None, ...]:
        G = g.reshape(-1, W.shape[0])
        gradients = ((G @ W).reshape(shape) if needs_x else None, G.T @ X if needs_weight else None)
        return gradients if bias is None else (*gradients, column_sums(G))

    parents = (x, weight) if bias is None else (x, weight, bias)
    return record(Y.reshape(*shape[:-1], W.shape[0]), parents, derivative)


def conv1d(
    x: Float[Tensor, "*batch i"], weight: Float[Tensor, "i o"], bias: Float[Tensor, "o"] | None = None
) -> Float[Tensor, "*batch o"]:
    """x W + b, the weight stored as [in, out], as GPT-2 does (a convolution of width 1, hence the name)."""
    shape, W = x.shape, weight.data
    needs_x, needs_weight = x.requires_grad, weight.requires_grad  # a frozen weight costs no product
    X = x.data.reshape(-1, shape[-1])
    Y = X @ W
    if bias is not None:
        Y += bias.data

    def derivative(g: Array) -> tuple[Array | None, ...]:
        G = g.reshape(-1, W.shape[1])
        gradients = ((G @ W.T).reshape(shape) if needs_x else None, X.T @ G if needs_weight else None)
        return gradients if bias is None else (*gradients, column_sums(G))

    parents = (x, weight) if bias is None else (x, weight, bias)
    return record(Y.reshape(*shape[:-1], W.shape[1]), parents, derivative)


def column_sums(rows: Array) -> Array:
    """Σ over rows, as a product with ones: BLAS adds several times faster than `sum(axis=0)`."""
    return np.ones(len(rows), rows.dtype) @ rows
