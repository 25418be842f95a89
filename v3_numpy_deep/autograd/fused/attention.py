"""Causal attention softmax(q kᵀ / √D + mask) v, in tiles that stay in the cache (Dao et al. 2022, FlashAttention).

The T × S matrix of weights P is never in memory as a whole. A tile is a few queries of one sequence with all the keys they
may see: keys in the future, and keys of other documents, are not even multiplied. What the backward pass keeps is the
output and the logarithm of each softmax sum, L; it makes P again, as exp(q kᵀ / √D − L). With ∂o the gradient of the output:

    ∂v = Pᵀ ∂o        ∂P = ∂o vᵀ        ∂s = P (∂P − Σ_keys P ∂P)        ∂q = ∂s k / √D        ∂k = ∂sᵀ q / √D

and, since o = P v, the sum Σ_keys P ∂P is Σ_D o ∂o, one number a query (FlashAttention, section 3.1 and appendix B).
H query heads share K key-value heads in groups of H / K (Ainslie et al. 2023); their gradients add up in ∂k and ∂v.
The composition is `causal_attention` in models/blocks/attention.py.

    uv run python -c "from v3_numpy_deep.autograd.fused.attention import causal_attention; help(causal_attention)"
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from v3_numpy_deep.autograd.tensor import Array, Tensor, record
from v3_numpy_deep.models.blocks.attention import causal_attention as plain_causal_attention
from v3_numpy_deep.models.blocks.attention_mask import AttentionMask

TILE_QUERIES = 64  # measured: fewer, larger products against fewer products with hidden keys


class Tile(NamedTuple):
    """Some queries of one sequence and the keys at least one of them may see."""

    queries: slice | Int[Array, "t"]
    keys: slice
    masked: slice  # the keys, counted from the start of `keys`, that not all of the queries may see
    bias: Float[Array, "m 1 t"]  # for these: 0 where allowed, −∞ where not


def causal_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S Dv"],
    mask: AttentionMask | None = None,
    dropout_p: float = 0.0,
    generator: np.random.Generator | None = None,
) -> Float[Tensor, "B H T Dv"]:
    """softmax(q kᵀ / √D + mask) v; a query that sees no key, or that the mask does not want, gets zeros."""
    mask = mask or AttentionMask(q.shape[2], k.shape[2])
    if dropout_p > 0.0:
        return plain_causal_attention(q, k, v, mask, dropout_p, generator)
    Q, K, V, tiles = q.data, k.data, v.data, plan_tiles(mask)
    output, log_sums = _zeros(Q, V.shape[-1]), np.empty((*Q.shape[:3], 1), Q.dtype)
    for b in range(len(Q)):
        _attend(Q[b], K[b], V[b], tiles[b % len(tiles)], output[b], log_sums[b])

    def derivative(g: Array) -> tuple[Array, Array, Array]:
        grad_q, grad_k, grad_v = (_zeros(x, x.shape[-1]) for x in (Q, K, V))
        for b in range(len(Q)):
            saved = (Q[b], K[b], V[b], tiles[b % len(tiles)], output[b], log_sums[b])
            _attend_backward(g[b], *saved, grad_q[b], grad_k[b], grad_v[b])
        return grad_q, grad_k, grad_v

    return record(output, (q, k, v), derivative)


def _attend(
    q: Float[Array, "H T D"],
    k: Float[Array, "K S D"],
    v: Float[Array, "K S Dv"],
    tiles: list[Tile],
    output: Float[Array, "H T Dv"],
    log_sums: Float[Array, "H T 1"],
) -> None:
    """Attention of one sequence, written to `output`, and the logarithms of its softmax sums to `log_sums`."""
    scale, K = 1.0 / math.sqrt(q.shape[-1]), len(k)
    for tile in tiles:
        weights = _scores(_group(q, tile, K) * scale, k, tile)
        largest = weights.max(axis=1, keepdims=True)
        np.maximum(largest, np.finfo(q.dtype).min, out=largest)  # −∞ − (−∞) of an empty row would be NaN
        weights -= largest
        np.exp(weights, out=weights)
        total = np.ones((1, weights.shape[1]), q.dtype) @ weights  # a sum over keys
        total[total == 0.0] = 1.0
        values = weights.swapaxes(1, 2) @ v[:, tile.keys]
        values /= total.swapaxes(1, 2)
        _ungroup(output, tile, values)
        largest += np.log(total)
        _ungroup(log_sums, tile, largest.swapaxes(1, 2))


def _attend_backward(
    g: Float[Array, "H T Dv"],
    q: Float[Array, "H T D"],
    k: Float[Array, "K S D"],
    v: Float[Array, "K S Dv"],
    tiles: list[Tile],
    output: Float[Array, "H T Dv"],
    log_sums: Float[Array, "H T 1"],
    grad_q: Float[Array, "H T D"],
    grad_k: Float[Array, "K S D"],
    grad_v: Float[Array, "K S Dv"],
) -> None:
    """The derivative of `_attend`: a tile's weights P are made again, then come the formulas at the top of the file."""
    scale, K = 1.0 / math.sqrt(q.shape[-1]), len(k)
    for tile in tiles:
        queries = _group(q, tile, K) * scale
        weights = _scores(queries, k, tile)
        weights -= _group(log_sums, tile, K).swapaxes(1, 2)
        np.exp(weights, out=weights)
        grad_output = _group(g, tile, K)
        row_sums = np.vecdot(grad_output, _group(output, tile, K))
        grad_v[:, tile.keys] += weights @ grad_output
        grad_scores = v[:, tile.keys] @ grad_output.swapaxes(1, 2)
        grad_scores -= row_sums[:, None]
        grad_scores *= weights
        grad_queries = grad_scores.swapaxes(1, 2) @ k[:, tile.keys]
        grad_queries *= scale
        _ungroup(grad_q, tile, grad_queries)
        grad_k[:, tile.keys] += grad_scores @ queries


def _scores(queries: Float[Array, "K Gt D"], k: Float[Array, "K S D"], tile: Tile) -> Float[Array, "K n Gt"]:
    """Products of a tile's keys and queries, −∞ where the mask forbids.

    Keys are rows and queries columns: the largest and the sum over keys are then made of whole rows, four times faster.
    """
    scores = k[:, tile.keys] @ queries.swapaxes(1, 2)
    if tile.bias.size:
        by_query = scores.reshape(*scores.shape[:2], -1, tile.bias.shape[-1])  # [K, n, G, t]
        by_query[:, tile.masked] += tile.bias
    return scores


def _group(x: Float[Array, "H T D"], tile: Tile, K: int) -> Float[Array, "K Gt D"]:
    """The tile's rows of x: the queries of the heads that share a key-value head, below each other."""
    return x[:, tile.queries].reshape(K, -1, x.shape[-1])


def _ungroup(x: Float[Array, "H T D"], tile: Tile, rows: Float[Array, "K Gt D"]) -> None:
    """Write the tile's rows of x; the inverse of `_group`."""
    x[:, tile.queries] = rows.reshape(len(x), -1, x.shape[-1])


def _zeros(x: Float[Array, "B H T D"], size: int) -> Float[Array, "B H T Dv"]:
    """A new array in memory order [B, T, H, size]: joining the heads afterwards needs no copy."""
    B, H, T, _ = x.shape
    return np.zeros((B, T, H, size), x.dtype).transpose(0, 2, 1, 3)


def plan_tiles(mask: AttentionMask) -> list[list[Tile]]:
    """The tiles of each sequence (one list, where all sequences have the same mask); planned once for all layers."""
    if mask.plan is None:
        allowed = mask.allowed()
        wanted = np.ones((1, mask.T), bool) if mask.queries is None else mask.queries
        mask.plan = [
            _plan_sequence(allowed[b % len(allowed)], wanted[b % len(wanted)])
            for b in range(max(len(allowed), len(wanted)))
        ]
    return mask.plan


def _plan_sequence(allowed: Bool[Array, "T S"], wanted: Bool[Array, "T"]) -> list[Tile]:
    """Cut the wanted queries into tiles. One ends where a document does (where the first visible key changes)."""
    positions = np.flatnonzero(wanted)
    allowed = allowed[positions]
    first_key = allowed.argmax(axis=1)
    ends = [0, *(np.flatnonzero(np.diff(first_key)) + 1).tolist(), len(allowed)]
    tiles = []
    for begin, end in itertools.pairwise(ends):
        for start in range(begin, end, TILE_QUERIES):
            rows = slice(start, min(start + TILE_QUERIES, end))
            visible = np.flatnonzero(allowed[rows].any(axis=0))
            keys = slice(visible[0], visible[-1] + 1) if visible.size else slice(0, 1)
            block = allowed[rows, keys]
            some_masked = ~block.all(axis=0)
            masked = slice(int(some_masked.argmax()) if some_masked.any() else block.shape[1], block.shape[1])
            bias = np.where(block[:, masked].T, np.float32(0), np.float32(-np.inf))[:, None]
            tiles.append(Tile(_as_slice(positions[rows]), keys, masked, bias))
    return tiles


def _as_slice(positions: Int[Array, "t"]) -> slice | Int[Array, "t"]:
    """Consecutive positions as a slice, which reads them without a copy."""
    first, last = int(positions[0]), int(positions[-1])
    return slice(first, last + 1) if last - first + 1 == len(positions) else positions
