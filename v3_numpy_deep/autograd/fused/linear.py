"""The affine map y = x Wᵀ + b over the last axis, one matrix product for all positions of all sequences.

Derivative, with all positions as rows of X and G (n rows):  ∂X = G W,  ∂W = Gᵀ X,  ∂b = Σ rows of G.
∂W is one product of (out × n) by (n × in); summing a product for each sequence would write the weight's size B times.
The composition is `linear` in models/blocks/linear.py. GPT-2 stores W as [in, out]: its transpose is a view, and BLAS reads
either order, so one operation serves both families.

    uv run python -c "from v3_numpy_deep.autograd.fused.linear import linear; help(linear)"
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.autograd.module import Module
from v3_numpy_deep.autograd.tensor import Array, Tensor, is_recording, record
from v3_numpy_deep.models.blocks.linear import Linear
from v3_numpy_deep.models.blocks.linear import merged_linear as plain_merged_linear
from v3_numpy_deep.models.weight_layout import side_by_side


def linear(
    x: Float[Tensor, "*rows i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, "o"] | None = None
) -> Float[Tensor, "*rows o"]:
    """x Wᵀ + b;  ∂x = g W,  ∂W = gᵀ x,  ∂b = Σ g"""
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


def merged_linear(x: Float[Tensor, "*rows i"], layers: Sequence[Module]) -> Float[Tensor, "*rows o"]:
    """The outputs of several layers side by side, as one product with their weights stacked.

    A layer that is not exactly `Linear` (an adapter around one, say) is called by itself.
    """
    if not all(type(layer) is Linear for layer in layers):
        return plain_merged_linear(x, layers)
    matrices = [layer.weight.data.T for layer in layers]
    joined = [] if is_recording() else side_by_side(matrices)
    weight = Tensor(joined[0].T) if len(joined) == 1 else ops.concatenate([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else ops.concatenate([layer.bias for layer in layers])
    return linear(x, weight, bias)


def column_sums(rows: Array) -> Array:
    """Σ over rows, as a product with ones: BLAS adds several times faster than `sum(axis=0)`."""
    return np.ones(len(rows), rows.dtype) @ rows
