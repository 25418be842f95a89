"""Causal attention softmax(q kᵀ / √D + mask) v, in tiles that stay in the cache (Dao et al. 2022, FlashAttention).

The T × S matrix of weights P is never in memory as a whole. A tile is a few queries of one sequence with all the keys they
may see: keys in the future, and keys of other documents, are not even multiplied. What the backward pass keeps is the
output and the logarithm of each softmax sum, L; it makes P again, as exp(q kᵀ / √D − L). With ∂o the gradient of the output:

    ∂v = Pᵀ ∂o        ∂P = ∂o vᵀ        ∂s = P (∂P − Σ_keys P ∂P)        ∂q = ∂s k / √D        ∂k = ∂sᵀ q / √D

and, since o = P v, the sum Σ_keys P ∂P is Σ_D o ∂o, one number a query (FlashAttention, section 3.1 and appendix B).
H query heads share K key-value heads in groups of H / K (Ainslie et al. 2023); their gradients add up in ∂k and ∂v.
The composition is `plain_attention` in models/blocks/attention.py.

    python -c "from v3_numpy_deep.autograd.fused.attention import attention; help(attention)"
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from v3_numpy_deep.autograd.tensor import Array, Tensor, record

TILE_QUERIES = 64  # measured: fewer, larger products against fewer products with hidden keys


class Tile(NamedTuple):
    """Some queries of one sequence and the keys at least one of them may see."""

    queries: slice
    keys: slice
    masked: slice  # the keys, counted from the start of `keys`, that not all of the queries may see
    bias: Array  # for these: 0 where allowed, −∞ where not [masked keys, 1, queries]


def attention(
    q: Float[Tensor, "rows H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S D"],
    tiles: list[list[Tile]],
) -> Float[Tensor, "rows H T D"]:
    """Attention over the keys that the mask behind `tiles` (see `plan_tiles`) allows; a query that sees none gets zeros.

    q may be one row of the queries of all sequences, behind one another; the tiles of each then say where in it their own are.
    """
    Q, K, V = q.data, k.data, v.data
    output = _heads_inside(Q)
    log_sums = np.empty((*Q.shape[:3], 1), Q.dtype)
    for b in range(len(K)):
        a = b % len(Q)
        _attend(Q[a], K[b], V[b], tiles[b % len(tiles)], output[a], log_sums[a])

    def derivative(g: Array) -> tuple[Array, Array, Array]:
        grad_q, grad_k, grad_v = _heads_inside(Q), _heads_inside(K), _heads_inside(V)
        for b in range(len(K)):
            a = b % len(Q)
            saved = (Q[a], K[b], V[b], tiles[b % len(tiles)], output[a], log_sums[a])
            _attend_backward(g[a], *saved, grad_q[a], grad_k[b], grad_v[b])
        return grad_q, grad_k, grad_v

    return record(output, (q, k, v), derivative)


def _attend(
    q: Float[Array, "H T D"],
    k: Float[Array, "K S D"],
    v: Float[Array, "K S D"],
    tiles: list[Tile],
    output: Float[Array, "H T D"],
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
    g: Float[Array, "H T D"],
    q: Float[Array, "H T D"],
    k: Float[Array, "K S D"],
    v: Float[Array, "K S D"],
    tiles: list[Tile],
    output: Float[Array, "H T D"],
    log_sums: Float[Array, "H T 1"],
    grad_q: Float[Array, "H T D"],
    grad_k: Float[Array, "K S D"],
    grad_v: Float[Array, "K S D"],
) -> None:
    """The derivative of `_attend`: a tile's weights P are made again, then come the formulas at the top of the file."""
    scale, K = 1.0 / math.sqrt(q.shape[-1]), len(k)
    grad_k[...] = grad_v[...] = 0.0
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


def _heads_inside(x: Float[Array, "B H T D"]) -> Float[Array, "B H T D"]:
    """A new array whose memory is laid out as [B, T, H, D], so that joining the heads afterwards needs no copy."""
    B, H, T, D = x.shape
    return np.empty((B, T, H, D), x.dtype).transpose(0, 2, 1, 3)


def plan_tiles(mask: Float[Array, "#B T S"] | None, T: int, S: int) -> list[list[Tile]]:
    """Cut the queries of each sequence into tiles, and find the keys of each tile; one list a sequence of the mask.

    `mask` is 0 where a query may see a key; without one, the T queries are the last of S positions and see what is before
    them. A tile ends where a document does (where the first visible key changes), so it needs no key of another one.
    """
    allowed = np.tri(T, S, S - T, dtype=bool)[None] if mask is None else mask == 0.0
    return [_plan_sequence(sequence) for sequence in allowed]


def document_tiles(
    document_ids: Int[Array, "B T"], branch_ids: Int[Array, "B T"] | None = None
) -> list[list[Tile]]:
    """The tiles of causal attention within documents, from where these end: no T × T mask is ever made.

    With branches, which follow the trunk (branch 0) of their document, a query sees the trunk and its own branch.
    """
    keys, queries = np.indices((TILE_QUERIES, TILE_QUERIES))
    triangle = np.where(keys <= queries, np.float32(0), np.float32(-np.inf))[:, None]  # [keys, 1, queries]
    branches = np.zeros_like(document_ids) if branch_ids is None else branch_ids
    return [_document_sequence(*row, triangle) for row in zip(document_ids, branches, strict=True)]


def _document_sequence(
    document_ids: Int[Array, "T"], branch_ids: Int[Array, "T"], triangle: Array
) -> list[Tile]:
    """The tiles of one sequence of documents. In a trunk, only a tile's own keys have something to hide; then, all from the fork on."""
    ends = [0, *(np.flatnonzero(np.diff(document_ids)) + 1).tolist(), len(document_ids)]
    tiles = []
    for begin, end in itertools.pairwise(ends):
        fork = begin + int((branch_ids[begin:end] == 0).sum())
        starts = [*range(begin, fork, TILE_QUERIES), *range(fork, end, TILE_QUERIES)]
        for start, stop in itertools.pairwise([*starts, end]):
            first, bias = start, triangle[: stop - start, :, : stop - start]
            if start >= fork:
                first = fork
                seen = np.tri(stop - start, stop - fork, start - fork, dtype=bool)
                seen &= branch_ids[start:stop, None] == branch_ids[fork:stop]
                bias = np.where(seen.T, np.float32(0), np.float32(-np.inf))[:, None]
            tiles.append(
                Tile(slice(start, stop), slice(begin, stop), slice(first - begin, stop - begin), bias)
            )
    return tiles


def read_tiles(tiles: list[list[Tile]], read: Bool[Array, "B T"]) -> list[list[Tile]]:
    """What is left of the tiles when only the queries at `read` count, which stand behind one another in a single row."""
    before = np.cumsum([0, *read.sum(axis=1)]).tolist()  # how many are read in the sequences before
    return [
        _read_sequence(tiles[row % len(tiles)], asks, first)
        for row, (asks, first) in enumerate(zip(read, before[:-1], strict=True))
    ]


def _read_sequence(tiles: list[Tile], read: Bool[Array, "T"], first: int) -> list[Tile]:
    """`read_tiles` of one sequence, whose queries stand from `first` on."""
    before = [first, *(first + read.cumsum()).tolist()]
    left = []
    for tile in tiles:
        begin, end = before[tile.queries.start], before[tile.queries.stop]
        if begin < end:
            bias = tile.bias[:, :, read[tile.queries]]
            left.append(tile._replace(queries=slice(begin, end), bias=bias))
    return left


def _plan_sequence(allowed: Bool[Array, "T S"]) -> list[Tile]:
    """The tiles of one sequence."""
    first_key = allowed.argmax(axis=1)
    starts = [0, *(np.flatnonzero(np.diff(first_key)) + 1).tolist(), len(allowed)]
    tiles = []
    for document_start, document_end in itertools.pairwise(starts):
        for start in range(document_start, document_end, TILE_QUERIES):
            queries = slice(start, min(start + TILE_QUERIES, document_end))
            visible = np.flatnonzero(allowed[queries].any(axis=0))
            keys = slice(visible[0], visible[-1] + 1) if visible.size else slice(0, 1)
            block = allowed[queries, keys]
            some_masked = ~block.all(axis=0)
            masked = slice(int(some_masked.argmax()) if some_masked.any() else block.shape[1], block.shape[1])
            bias = np.where(block[:, masked].T, np.float32(0), np.float32(-np.inf))
            tiles.append(Tile(queries, keys, masked, bias[:, None]))
    return tiles
