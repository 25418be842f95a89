"""The mixture of experts: the tokens in the order of their experts, one matrix product for each expert that has tokens.

Of one expert, with the rows x of the tokens that chose it and their weights w (a column):

    [g | u] = x Gᵀ,   h = silu(g) u,   y = (w h) Dᵀ

    a = dy D,   ∂w = h · a (a sum over F),   ∂D = dyᵀ (w h),   ∂[g | u] = SwiGLU's of w a,   ∂G = ∂[g | u]ᵀ x,   ∂x = ∂[g | u] G

The weight goes into h, so that the outputs of experts are nothing but added up, and ∂w needs none of them: only g and u are kept.
The composition is `expert_mixture` in models/blocks/mixture_of_experts.py. Level 2 has the same derivative, in batched products.

    uv run python -c "from v3_numpy_deep.autograd.fused.mixture_of_experts import expert_mixture; help(expert_mixture)"
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from v3_numpy_deep.autograd.fused.blocks import row_blocks
from v3_numpy_deep.autograd.fused.feed_forward import silu_and_two_sigma
from v3_numpy_deep.autograd.tensor import Array, Tensor, record
from v3_numpy_deep.models.blocks.mixture_of_experts import by_expert


def expert_mixture(
    x: Float[Tensor, "N C"],
    weights: Float[Tensor, "N k"],
    experts: Int[Array, "N k"],
    gate_up_proj: Float[Tensor, "E twoF C"],
    down_proj: Float[Tensor, "E C F"],
) -> Float[Tensor, "N C"]:
    """Σ_k weight · SwiGLU_expert(x);  ∂x = Σ_k ∂[g | u] G,  ∂weight = h · (dy D),  ∂G = ∂[g | u]ᵀ x,  ∂D = dyᵀ (w h)"""
    X, G, D = x.data, gate_up_proj.data, down_proj.data
    needs_experts = gate_up_proj.requires_grad or down_proj.requires_grad  # frozen ones cost no product
    order, load = by_expert(experts, len(G))
    place, token = np.argsort(order), order // experts.shape[1]
    w = weights.data.reshape(-1, 1)[order]
    gate_up = np.empty((len(order), G.shape[1]), X.dtype)
    rows_y = np.empty((len(order), X.shape[1]), X.dtype)
    for expert, rows in _slices(load):
        np.matmul(X[token[rows]], G[expert].T, out=gate_up[rows])
        np.matmul(_weighted_swiglu(gate_up[rows], w[rows]), D[expert].T, out=rows_y[rows])

    def derivative(g: Array) -> tuple[Array | None, ...]:
        rows_x, grad_w = np.empty_like(rows_y), np.empty_like(w)
        grad_G, grad_D = (np.empty_like(G), np.empty_like(D)) if needs_experts else (None, None)
        for expert, rows in _slices(load):
            g_rows = g[token[rows]]
            hidden, grad_gate_up, grad_w[rows] = _backward(gate_up[rows], w[rows], g_rows @ D[expert])
            np.matmul(grad_gate_up, G[expert], out=rows_x[rows])
            if grad_G is not None and grad_D is not None:
                np.matmul(grad_gate_up.T, X[token[rows]], out=grad_G[expert])
                np.matmul(g_rows.T, hidden, out=grad_D[expert])
        if grad_G is not None and grad_D is not None:
            idle = np.equal(load, 0)
            grad_G[idle], grad_D[idle] = 0, 0
        return _added_up(rows_x, place, experts), grad_w[place].reshape(experts.shape), grad_G, grad_D

    return record(_added_up(rows_y, place, experts), (x, weights, gate_up_proj, down_proj), derivative)


def _slices(load: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Every expert that has tokens, and its rows among the sorted assignments."""
    ends = np.cumsum(load).tolist()
    return ((expert, slice(ends[expert] - size, ends[expert])) for expert, size in enumerate(load) if size)


def _added_up(rows: Array, place: Array, experts: Array) -> Array:
    """The sum of each token's k rows [N, C]."""
    total = rows[place[:: experts.shape[1]]]
    for choice in range(1, experts.shape[1]):
        total += rows[place[choice :: experts.shape[1]]]
    return total


def _weighted_swiglu(gate_up: Array, w: Array) -> Array:
    """w silu(gate) up"""
    F = gate_up.shape[1] // 2
    hidden = np.empty((len(gate_up), F), gate_up.dtype)
    for rows in row_blocks(*hidden.shape):
        silu, _ = silu_and_two_sigma(gate_up[rows, :F], out=hidden[rows])
        silu *= gate_up[rows, F:]
        silu *= w[rows]
    return hidden


def _backward(gate_up: Array, w: Array, a: Array) -> tuple[Array, Array, Array]:
    """w h again, the gradient of gate and up, and that of the weight; `a` is overwritten."""
    F = gate_up.shape[1] // 2
    hidden, grad_gate_up, grad_w = np.empty_like(a), np.empty_like(gate_up), np.empty_like(w)
    for rows in row_blocks(*a.shape):
        gate, up, h = gate_up[rows, :F], gate_up[rows, F:], hidden[rows]
        silu, two_sigma = silu_and_two_sigma(gate, out=np.empty_like(h))
        np.multiply(silu, up, out=h)
        grad_w[rows, 0] = np.einsum("nf,nf->n", h, a[rows])
        h *= w[rows]
        a[rows] *= w[rows]
        np.multiply(silu, a[rows], out=grad_gate_up[rows, F:])
        two_sigma *= 1.0 - silu
        two_sigma *= 0.5
        silu += two_sigma  # silu + σ (1 - silu), the slope
        silu *= up
        np.multiply(silu, a[rows], out=grad_gate_up[rows, :F])
    return hidden, grad_gate_up, grad_w
