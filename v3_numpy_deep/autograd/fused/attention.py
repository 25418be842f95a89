"""Causal attention softmax(q kᵀ / √D + mask) v, in tiles that stay in the cache (Dao et al. 2022, FlashAttention).

The T × S matrix of weights P is never in memory as a whole. A tile is a few queries of one sequence with keys they may see: keys in
the future, keys of other documents and those that a sparse pattern leaves out are not even multiplied (attention_tiles.py). Each tile
is a softmax of its own, with output o and logarithm L of its sum. Where a query has keys in two tiles, they merge, in any order:

    L = log(exp L₁ + exp L₂)        o = exp(L₁ − L) o₁ + exp(L₂ − L) o₂

which is the online softmax of FlashAttention without a running maximum. A learned sink is a tile of its own: L₂ is the sink, o₂ = 0.
What the backward pass keeps is o and L; it makes P again, as exp(q kᵀ / √D − L). With ∂o the gradient of the output:

    ∂v = Pᵀ ∂o        ∂P = ∂o vᵀ        ∂s = P (∂P − Σ_keys P ∂P)        ∂q = ∂s k / √D        ∂k = ∂sᵀ q / √D

and, since o = P v, the sum Σ_keys P ∂P is Σ_D o ∂o, one number a query (FlashAttention, section 3.1 and appendix B).
H query heads share K key-value heads in groups of H / K (Ainslie et al. 2023); their gradients add up in ∂k and ∂v.
The composition is `causal_attention` in models/blocks/attention.py.

    uv run python -c "from v3_numpy_deep.autograd.fused.attention import causal_attention; help(causal_attention)"
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from v3_numpy_deep.autograd.fused.attention_tiles import Tile, plan_tiles
from v3_numpy_deep.autograd.tensor import Array, Tensor, record
from v3_numpy_deep.models.blocks.attention import causal_attention as plain_causal_attention
from v3_numpy_deep.models.blocks.attention_mask import AttentionMask


def causal_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S Dv"],
    mask: AttentionMask | None = None,
    dropout_p: float = 0.0,
    generator: np.random.Generator | None = None,
    sinks: Float[Tensor, "heads=H"] | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "B H T Dv"]:
    """softmax(q kᵀ / √D + mask) v; a query that sees no key, or that the mask does not want, gets zeros."""
    mask = mask or AttentionMask(q.shape[2], k.shape[2])
    if dropout_p > 0.0:
        return plain_causal_attention(q, k, v, mask, dropout_p, generator, sinks, softcap)
    Q, K, V, tiles = q.data, k.data, v.data, plan_tiles(mask)
    output = _zeros((*Q.shape[:3], V.shape[-1]), Q.dtype)
    log_sums = np.full((*Q.shape[:3], 1), np.finfo(Q.dtype).min, Q.dtype)
    for b in range(len(Q)):
        _attend(Q[b], K[b], V[b], tiles[b % len(tiles)], softcap, output[b], log_sums[b])
    if sinks is not None:
        _merge_sinks(sinks.data[:, None, None], output, log_sums)

    def derivative(g: Array) -> tuple[Array, ...]:
        grad_q, grad_k, grad_v = (_zeros(x.shape, x.dtype) for x in (Q, K, V))
        for b in range(len(Q)):
            saved = (Q[b], K[b], V[b], tiles[b % len(tiles)], softcap, output[b], log_sums[b])
            _attend_backward(g[b], *saved, grad_q[b], grad_k[b], grad_v[b])
        if sinks is None:
            return grad_q, grad_k, grad_v
        weights = np.exp(sinks.data[:, None, None] - log_sums)[..., 0]  # of the sinks, whose value is 0
        return grad_q, grad_k, grad_v, -(weights * np.vecdot(g, output)).sum(axis=(0, 2))

    inputs = (q, k, v) if sinks is None else (q, k, v, sinks)
    return record(output, inputs, derivative)


def _attend(
    q: Float[Array, "H T D"],
    k: Float[Array, "K S D"],
    v: Float[Array, "K S Dv"],
    tiles: list[Tile],
    softcap: float | None,
    output: Float[Array, "H T Dv"],
    log_sums: Float[Array, "H T 1"],
) -> None:
    """Attention of one sequence, written to `output`, and the logarithms of its softmax sums to `log_sums`."""
    scale, K = 1.0 / math.sqrt(q.shape[-1]), len(k)
    for tile in tiles:
        weights, _ = _scores(_group(q, tile, K) * scale, k, tile, softcap)
        largest = weights.max(axis=1, keepdims=True)
        np.maximum(largest, np.finfo(q.dtype).min, out=largest)  # −∞ − (−∞) of an empty row would be NaN
        weights -= largest
        np.exp(weights, out=weights)
        total = np.ones((1, weights.shape[1]), q.dtype) @ weights  # a sum over keys
        total[total == 0.0] = 1.0
        values = weights.swapaxes(1, 2) @ v[:, tile.keys]
        values /= total.swapaxes(1, 2)
        largest += np.log(total)
        sums = largest.swapaxes(1, 2)
        if tile.merge:
            values, sums = _merged(_group(output, tile, K), _group(log_sums, tile, K), values, sums)
        _ungroup(output, tile, values)
        _ungroup(log_sums, tile, sums)


def _merged(
    values: Float[Array, "K Gt Dv"],
    sums: Float[Array, "K Gt 1"],
    other_values: Float[Array, "K Gt Dv"],
    other_sums: Float[Array, "K Gt 1"],
) -> tuple[Float[Array, "K Gt Dv"], Float[Array, "K Gt 1"]]:
    """Two softmaxes of the same queries over different keys as one: outputs and logarithms of the sums."""
    both = np.logaddexp(sums, other_sums)
    return np.exp(sums - both) * values + np.exp(other_sums - both) * other_values, both


def _merge_sinks(
    sinks: Float[Array, "H 1 1"], output: Float[Array, "B H T Dv"], log_sums: Float[Array, "B H T 1"]
) -> None:
    """`_merged` with keys of these scores, whose values are 0; in place."""
    before = log_sums.copy()
    np.logaddexp(before, sinks, out=log_sums)
    output *= np.exp(before - log_sums)


def _attend_backward(
    g: Float[Array, "H T Dv"],
    q: Float[Array, "H T D"],
    k: Float[Array, "K S D"],
    v: Float[Array, "K S Dv"],
    tiles: list[Tile],
    softcap: float | None,
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
        weights, slope = _scores(queries, k, tile, softcap)
        weights -= _group(log_sums, tile, K).swapaxes(1, 2)
        np.exp(weights, out=weights)
        grad_output = _group(g, tile, K)
        row_sums = np.vecdot(grad_output, _group(output, tile, K))
        grad_v[:, tile.keys] += weights @ grad_output
        grad_scores = v[:, tile.keys] @ grad_output.swapaxes(1, 2)
        grad_scores -= row_sums[:, None]
        grad_scores *= weights
        if slope is not None:
            grad_scores *= slope
        grad_queries = grad_scores.swapaxes(1, 2) @ k[:, tile.keys]
        grad_queries *= scale
        if tile.merge:
            grad_queries += _group(grad_q, tile, K)
        _ungroup(grad_q, tile, grad_queries)
        grad_k[:, tile.keys] += grad_scores @ queries


def _scores(
    queries: Float[Array, "K Gt D"], k: Float[Array, "K S D"], tile: Tile, softcap: float | None
) -> tuple[Float[Array, "K n Gt"], Float[Array, "K n Gt"] | None]:
    """Products of a tile's keys and queries, −∞ where the mask forbids; with a soft cap also its derivative, 1 − tanh².

    Keys are rows and queries columns: the largest and the sum over keys are then made of whole rows, four times faster.
    """
    scores, slope = k[:, tile.keys] @ queries.swapaxes(1, 2), None
    if softcap is not None:
        scores /= softcap
        np.tanh(scores, out=scores)
        slope = 1.0 - scores * scores
        scores *= softcap
    if tile.bias.size:
        by_query = scores.reshape(*scores.shape[:2], -1, tile.bias.shape[-1])  # [K, n, G, t]
        by_query[:, tile.masked] += tile.bias
    return scores, slope


def _group(x: Float[Array, "H T D"], tile: Tile, K: int) -> Float[Array, "K Gt D"]:
    """The tile's rows of x: the queries of the heads that share a key-value head, below each other."""
    return x[:, tile.queries].reshape(K, -1, x.shape[-1])


def _ungroup(x: Float[Array, "H T D"], tile: Tile, rows: Float[Array, "K Gt D"]) -> None:
    """Write the tile's rows of x; the inverse of `_group`."""
    x[:, tile.queries] = rows.reshape(len(x), -1, x.shape[-1])


def _zeros(shape: tuple[int, ...], dtype: Any) -> Float[Array, "B H T D"]:
    """A new array in memory order [B, T, H, D]: joining the heads afterwards needs no copy."""
    B, H, T, D = shape
    return np.zeros((B, T, H, D), dtype).transpose(0, 2, 1, 3)
