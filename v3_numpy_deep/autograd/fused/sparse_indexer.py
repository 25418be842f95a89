"""The loss of an indexer, some queries at a time: neither its scores nor the weights of the attention exist as a whole.

The loss is a mean over queries, L = Σ L_tile · n_tile / n, so a tile gives its part of L and, by a backward pass of its own, of every gradient.
What it computes is the plain formula, on the keys that its queries may see or, of selected keys, on these alone, gathered.
The derivative that the engine asks for later is then only a product: ∂x = g · (the gradient that is already there).

    uv run python -c "from v3_numpy_deep.autograd.fused.sparse_indexer import attention_kl; help(attention_kl)"
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from v3_numpy_deep.autograd.fused.gathered_attention import add_rows, places, tiles
from v3_numpy_deep.autograd.tensor import Array, Tensor, record
from v3_numpy_deep.models.blocks import sparse_indexer as plain
from v3_numpy_deep.models.blocks.attention import attention_weights
from v3_numpy_deep.models.blocks.attention_mask import AttentionMask
from v3_numpy_deep.models.blocks.selected_attention import GivenMask

TILE_SCORES = 2**18  # scores of a tile, those of all heads


class _Part(NamedTuple):
    """A tile: inputs of the indexer, where they stand among all tokens, queries and keys of the attention, what may be seen."""

    inputs: tuple[Array, Array, Array]
    query_places: Int[Array, "n"]
    key_places: Int[Array, "m"]
    q: Array
    k: Array
    allowed: Bool[Array, "b t s"]


def attention_kl(
    queries: Float[Tensor, "B T Hi Di"],
    keys: Float[Tensor, "B S Di"],
    weights: Float[Tensor, "B T Hi"],
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    selected: Int[Array, "B T k"] | None,
    mask: AttentionMask,
) -> Float[Tensor, ""]:
    """Mean KL of what the attention reads to what the indexer ranks; q and k are constants."""
    index = (queries.data, keys.data, weights.data)
    gradients = [np.zeros((x.shape[0] * x.shape[1], *x.shape[2:]), x.dtype) for x in index]
    total: Any = np.zeros((), q.dtype)
    count = 0
    parts = (
        _dense(index, q.data, k.data, mask)
        if selected is None
        else _gathered(index, q.data, k.data, selected)
    )
    for part in parts:
        seen, number = GivenMask(part.allowed), int(part.allowed.any(-1).sum())
        leaves = [Tensor(x, requires_grad=True) for x in part.inputs]
        target = attention_weights(Tensor(part.q), Tensor(part.k), seen).sum((1, 2))
        loss = plain.indexer_loss(plain.index_scores(*leaves), target, None, seen) * float(number)
        total, count = total + loss.data, count + number
        if loss.requires_grad:
            found = loss.gradients()
            for gradient, rows, leaf in zip(gradients, _places_of(part), leaves, strict=True):
                add_rows(gradient, rows, found[leaf])
    count = max(1, count)

    def derivative(g: Any) -> tuple[Array | None, ...]:
        by_input = (gradient.reshape(x.shape) for gradient, x in zip(gradients, index, strict=True))
        return *(gradient * (g / count) for gradient in by_input), None, None

    return record(total / q.dtype.type(count), (queries, keys, weights, q, k), derivative)


def _places_of(part: _Part) -> tuple[Array, Array, Array]:
    return part.query_places, part.key_places, part.query_places


def _dense(index: tuple[Array, Array, Array], q: Array, k: Array, mask: AttentionMask) -> Iterator[_Part]:
    """Some queries of each sequence, and all keys that are not in the future of all of them."""
    queries, keys, weights = index
    (B, T, Hi, _), S = queries.shape, mask.S
    size = max(1, TILE_SCORES // (B * (q.shape[1] + Hi) * S))
    sequence = np.arange(B)[:, None]
    for start in range(0, T, size):
        part = slice(start, min(start + size, T))
        end = S - T + part.stop
        allowed = mask.allowed(part)[..., :end]
        yield _Part(
            (queries[:, part], keys[:, :end], weights[:, part]),
            (T * sequence + np.arange(T)[part]).ravel(),
            (S * sequence + np.arange(end)).ravel(),
            q[:, :, part],
            k[:, :, :end],
            np.broadcast_to(allowed, (B, *allowed.shape[1:])),
        )


def _gathered(index: tuple[Array, Array, Array], q: Array, k: Array, selected: Array) -> Iterator[_Part]:
    """Some queries of the whole batch, each by itself, with the keys that are selected for it."""
    queries, keys, weights = (x.reshape(-1, *x.shape[2:]) for x in index)
    q_rows, k_rows = (x.transpose(0, 2, 1, 3).reshape(-1, x.shape[1], x.shape[3]) for x in (q, k))
    for rows in tiles(np.arange(len(queries)), selected.shape[-1] * (k_rows[0].size + keys.shape[-1])):
        ids, hidden = places(selected, rows, k.shape[2])
        yield _Part(
            (queries[rows][:, None], keys[ids], weights[rows][:, None]),
            rows,
            ids.ravel(),
            q_rows[rows][:, :, None],
            k_rows[ids].swapaxes(1, 2),
            ~hidden[:, None],
        )
