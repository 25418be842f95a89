"""Attention in tiles of queries that never look at the keys after them, nor at those of other documents, with its derivative.

FlashAttention's idea (Dao et al. 2022) for a CPU: a tile of 128 queries and the window of keys they can see is one matrix product
that stays in the cache, and the square of all scores is never formed. Derivation: models/blocks/attention.md. Sparse patterns, variants of
the softmax, and rows so long that the keys must be cut too are left to flash_attention.py.

Level 3: the same over NumPy.

    causal_attention(q, k, v, AttentionMask(T, S))   # as models/blocks/attention.py
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from v2_handwritten.kernels.fused.attention_tiles import (
    QUERY_TILE,
    Tile,
    by_position,
    keys_of,
    partial_tiles,
    plan_windows,
    queries_of,
)
from v2_handwritten.kernels.fused.flash_attention import flash_attention
from v2_handwritten.kernels.triton import triton_attention
from v2_handwritten.models.blocks import attention as plain
from v2_handwritten.models.blocks.attention_mask import AttentionMask

_KEEP_WEIGHTS = 2**26  # a layer with more attention weights computes them again in the backward pass
_TILE_WEIGHTS = 2**26  # with more in a single tile, the keys must be cut too
_LOG2_E = math.log2(math.e)


def causal_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S Dv"],
    mask: AttentionMask | None = None,
    dropout_p: float = 0.0,
    generator: torch.Generator | None = None,
    sinks: Float[Tensor, "H"] | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "B H T Dv"]:
    """`plain.causal_attention`, which it leaves dropout to. Where `mask.queries` are given, 0 at the others."""
    B, H, T, D = q.shape
    mask = mask or AttentionMask(T, k.shape[2], q.device)
    if dropout_p > 0:
        return plain.causal_attention(q, k, v, mask, dropout_p, generator, sinks, softcap)
    if (on_gpu := triton_attention(q, v, mask)) is not None:
        return on_gpu(q, k, v, mask, sinks, softcap)
    ordinary = mask.pattern.is_full and sinks is None and softcap is None and v.shape[-1] == D
    rows = B if mask.packing is None else 1  # in a tile
    if not ordinary or rows * H * min(T, QUERY_TILE) * k.shape[2] > _TILE_WEIGHTS:
        return flash_attention(q, k, v, mask, sinks, softcap)
    if "windows" not in mask.plans:  # the first block plans for all
        mask.plans["windows"] = plan_windows(mask)
    tiles = mask.plans["windows"]
    wanted = None if q.is_cuda else mask.queries  # a GPU does not wait for their number
    if wanted is not None:
        tiles = partial_tiles(tiles, wanted)
    return _CausalAttention.apply(q, k, v, tiles, wanted is not None)


class _CausalAttention(torch.autograd.Function):
    """For each tile of queries, and the keys in its window:

    E = 2^((q kᵀ/√D + mask) log₂e - row maximum),  z = Σ E,  o = E v / z
    With a = do / z and δ = Σ a o over D:   dE = E (a vᵀ - δ),  dv += Eᵀ a,  dq = dE k / √D,  dk += dEᵀ q / √D

    z divides arrays of D columns instead of S; powers of 2 cost less than powers of e: log₂e goes into the product's scale,
    and torch's `exp` on a CPU is fifty times slower where it underflows, as it does at every masked score.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, tiles: Sequence[Tile], partial: bool) -> Tensor:
        B, H, T, D = q.shape
        K, S = k.shape[1:3]
        queries = q.reshape(B, K, H // K, T, D)
        allocate = q.new_zeros if partial else q.new_empty
        output = allocate(B, T, K, H // K, D)  # in the order that the next projection reads
        keep = any(ctx.needs_input_grad) and B * H * T * S <= _KEEP_WEIGHTS
        kept = []
        for tile in tiles:
            E, inverse_sum = _exponentials(queries, k, tile)
            o = torch.bmm(E, keys_of(v, tile)).mul_(inverse_sum)
            output[tile.rows, tile.queries] = by_position(o, K, H // K)
            if keep:
                kept += [E, inverse_sum]
        ctx.save_for_backward(queries, k, v, output, *kept)
        ctx.tiles, ctx.partial = tiles, partial
        return output.view(B, T, H, D).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        queries, k, v, output, *kept = ctx.saved_tensors
        B, K, G, T, D = queries.shape
        d_output = d_output.transpose(1, 2).reshape(B, T, K, G, D)
        d_q = torch.zeros_like(output) if ctx.partial else torch.empty_like(output)
        d_k, d_v = k.new_zeros(k.shape), v.new_zeros(v.shape)
        delta = (d_output * output).sum(-1, keepdim=True)  # [B, T, K, G, 1]
        for index, tile in enumerate(ctx.tiles):
            E, inverse_sum = kept[2 * index : 2 * index + 2] or _exponentials(queries, k, tile)
            a = queries_of(d_output.permute(0, 2, 3, 1, 4), tile) * inverse_sum
            a_delta = queries_of(delta.permute(0, 2, 3, 1, 4), tile) * inverse_sum
            keys_of(d_v, tile).baddbmm_(E.transpose(1, 2), a)
            d_E = torch.bmm(a, keys_of(v, tile).transpose(1, 2)).sub_(a_delta).mul_(E)
            keys_of(d_k, tile).baddbmm_(d_E.transpose(1, 2), queries_of(queries, tile))
            d_q[tile.rows, tile.queries] = by_position(torch.bmm(d_E, keys_of(k, tile)), K, G)
        scale = 1 / math.sqrt(D)
        return d_q.view(B, T, K * G, D).transpose(1, 2).mul_(scale), d_k.mul_(scale), d_v, None, None


def _exponentials(
    queries: Float[Tensor, "B K G T D"], k: Float[Tensor, "B K S D"], tile: Tile
) -> tuple[Float[Tensor, "BK Gt window"], Float[Tensor, "BK Gt 1"]]:
    """E of a tile, and 1 / Σ E."""
    K, G, D = queries.shape[1], queries.shape[2], queries.shape[-1]
    rows, keys = queries_of(queries, tile), keys_of(k, tile)
    scores = rows.new_empty(*rows.shape[:2], keys.shape[1])
    torch.baddbmm(scores, rows, keys.transpose(1, 2), beta=0, alpha=_LOG2_E / math.sqrt(D), out=scores)
    E = scores.to(torch.promote_types(scores.dtype, torch.float32))
    assert tile.mask is not None, "the end of a window is masked"
    per_query = E.view(-1, K, G, rows.shape[1] // G, keys.shape[1])
    per_query[..., -tile.mask.shape[-1] :].add_(tile.mask[:, None, None])
    E.sub_(E.amax(-1, keepdim=True)).exp2_()
    inverse_sum = E.sum(-1, keepdim=True).reciprocal_()
    return E.to(rows.dtype), inverse_sum.to(rows.dtype)
