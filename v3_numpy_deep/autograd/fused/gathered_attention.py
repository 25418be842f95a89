"""Attention to selected keys that touches no other key, in tiles of queries, forward and backward side by side.

For each query the k selected keys and values are gathered, [n, k, D], and a tile of queries is a batch of small products. Time grows with
T · k, memory with the tile. What the backward pass keeps is the output and the logarithm L of each softmax sum, as in attention.py:

    P = exp(q kᵀ / √D − L)        ∂v = Pᵀ ∂o        ∂s = P (∂o vᵀ − Σ_D o ∂o)        ∂q = ∂s k / √D        ∂k = ∂sᵀ q / √D

A key is selected by many queries, and its gradient is the sum of what they send. NumPy's `add.at` would add row by row; sorted by key, the
rows of each key stand together, and `add.reduceat` sums them at once.

    uv run python -c "from v3_numpy_deep.autograd.fused.gathered_attention import selected_attention; help(selected_attention)"
"""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

from v3_numpy_deep.autograd.tensor import Array, Tensor, record
from v3_numpy_deep.models.blocks.attention_mask import AttentionMask
from v3_numpy_deep.models.blocks.selected_attention import selected_attention as plain_selected_attention

TILE_ELEMENTS = 2**18  # numbers that are gathered at once


def selected_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S Dv"],
    selected: Int[Array, "B T k"],
    mask: AttentionMask,
    dropout_p: float = 0.0,
    generator: np.random.Generator | None = None,
) -> Float[Tensor, "B H T Dv"]:
    """Attention of each query to its selected keys; one that has none, or that the mask does not want, gets zeros."""
    if dropout_p > 0.0:
        return plain_selected_attention(q, k, v, selected, mask, dropout_p, generator)
    (B, H, T, D), (_, K, S, Dv) = q.shape, v.shape
    wanted = np.arange(B * T) if mask.queries is None else np.flatnonzero(mask.queries)
    # [tokens, heads, size]: what a token has stands together. `by_head` gives the K key-value heads an axis of their own.
    Q, keys, values = by_head(q.data, K), _rows(k.data), _rows(v.data)
    Q *= 1.0 / math.sqrt(D)
    output, log_sums = np.zeros((B * T, K, H // K, Dv), q.dtype), np.zeros((B * T, K, H // K, 1), q.dtype)
    for rows in tiles(wanted, K * selected.shape[-1] * (D + Dv)):
        ids, hidden = places(selected, rows, S)
        weights = _scores(Q[rows], keys[ids], hidden)
        largest = np.maximum(weights.max(axis=-1, keepdims=True), np.finfo(q.dtype).min)
        weights -= largest
        np.exp(weights, out=weights)
        total = weights.sum(axis=-1, keepdims=True)
        total[total == 0.0] = 1.0
        output[rows] = weights @ values[ids].swapaxes(1, 2) / total
        log_sums[rows] = largest + np.log(total)

    def derivative(g: Array) -> tuple[Array, ...]:
        G = by_head(g, K)
        grad_q, grad_k, grad_v = np.zeros_like(Q), np.zeros_like(keys), np.zeros_like(values)
        for rows in tiles(wanted, K * selected.shape[-1] * (D + Dv)):
            ids, hidden = places(selected, rows, S)
            near_keys, grad_output = keys[ids], G[rows]
            weights = _scores(Q[rows], near_keys, hidden)
            weights -= log_sums[rows]
            np.exp(weights, out=weights)
            grad_scores = grad_output @ values[ids].transpose(0, 2, 3, 1)
            grad_scores -= np.vecdot(grad_output, output[rows])[..., None]
            grad_scores *= weights
            grad_q[rows] = grad_scores @ near_keys.swapaxes(1, 2)
            add_rows(grad_v, ids, (weights.swapaxes(-1, -2) @ grad_output).swapaxes(1, 2))
            add_rows(grad_k, ids, (grad_scores.swapaxes(-1, -2) @ Q[rows]).swapaxes(1, 2))
        grad_q *= 1.0 / math.sqrt(D)
        heads_first = (x.reshape(B, S, K, -1).transpose(0, 2, 1, 3) for x in (grad_k, grad_v))
        return grad_q.reshape(B, T, H, D).transpose(0, 2, 1, 3), *heads_first

    return record(output.reshape(B, T, H, Dv).transpose(0, 2, 1, 3), (q, k, v), derivative)


def by_head(x: Float[Array, "B H T D"], K: int) -> Float[Array, "BT K G D"]:
    """A copy in which each token's queries stand together, those that share a key-value head as rows of one matrix."""
    B, H, T, D = x.shape
    return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(B * T, K, H // K, D)


def _rows(x: Float[Array, "B K S D"]) -> Float[Array, "BS K D"]:
    B, K, S, D = x.shape
    return x.transpose(0, 2, 1, 3).reshape(B * S, K, D)


def tiles(wanted: Int[Array, "N"], elements: int) -> Iterator[Int[Array, "n"]]:
    """Queries that are computed together: as many as the elements of one allow."""
    size = max(1, TILE_ELEMENTS // elements)
    return (wanted[start : start + size] for start in range(0, len(wanted), size))


def places(
    selected: Int[Array, "B T k"], rows: Int[Array, "n"], S: int
) -> tuple[Int[Array, "n k"], Bool[Array, "n k"]]:
    """Where the selected keys of these queries stand among the keys of all sequences, and which of them there are not."""
    sequence, position = np.divmod(rows, selected.shape[1])
    ids = selected[sequence, position]
    return np.maximum(ids, 0) + S * sequence[:, None], ids < 0


def _scores(
    queries: Float[Array, "n K G D"], keys: Float[Array, "n k K D"], hidden: Bool[Array, "n k"]
) -> Float[Array, "n K G k"]:
    """Products of each query, already divided by √D, and its keys; −∞ where there is no key."""
    scores = queries @ keys.transpose(0, 2, 3, 1)
    scores += np.where(hidden, queries.dtype.type(-np.inf), queries.dtype.type(0))[:, None, None]
    return scores


def add_rows(total: Float[Array, "N *D"], ids: Int[Array, "..."], new: Float[Array, "..."]) -> None:
    """total[ids] += new, where an id may occur many times."""
    flat, rows = ids.reshape(-1), new.reshape(-1, *total.shape[1:])
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    total[ordered[starts]] += np.add.reduceat(rows[order], starts, axis=0)
