"""Attention in tiles of queries that never look at the keys after them, nor at those of other documents, with its derivative.

FlashAttention's idea (Dao et al. 2022) for a CPU: a tile of 128 queries and the window of keys they can see is one matrix product
that stays in the cache, and the square of all scores is never formed. Derivation: models/blocks/attention.md.

Level 3: the same over NumPy.

    causal_attention(q, k, v, AttentionMask(T, S))   # as models/blocks/attention.py
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from v2_handwritten.models.blocks import attention as plain
from v2_handwritten.models.blocks.attention_mask import AttentionMask
from v2_handwritten.models.packing import Packing

_QUERY_TILE = 128  # queries in a tile
_KEEP_WEIGHTS = 2**26  # a layer with more attention weights computes them again in the backward pass
_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class _Tile:
    """Some queries, and the window of keys that they can see, in one row of the batch or in all."""

    rows: slice
    queries: slice | Tensor  # which positions
    keys: slice
    mask: Float[Tensor, "#B t n"]  # additive, for the last n keys of the window; nothing hides those before


def causal_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S D"],
    mask: AttentionMask | None = None,
    dropout_p: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B H T D"]:
    """`plain.causal_attention`, which it leaves dropout to. Where `mask.queries` are given, 0 at the others."""
    mask = mask or AttentionMask(q.shape[2], k.shape[2], q.device)
    if dropout_p > 0:
        return plain.causal_attention(q, k, v, mask, dropout_p, generator)
    if mask.plan is None:  # the first block plans for all
        mask.plan = _plan_tiles(mask)
    wanted = None if q.is_cuda else mask.queries  # a GPU does not wait for their number
    tiles = mask.plan if wanted is None else _partial_tiles(mask.plan, wanted)
    return _CausalAttention.apply(q, k, v, tiles, wanted is not None)


class _CausalAttention(torch.autograd.Function):
    """For each tile of queries, and the keys in its window:

    E = 2^((q kᵀ/√D + mask) log₂e - row maximum),  z = Σ E,  o = E v / z
    With a = do / z and δ = Σ a o over D:   dE = E (a vᵀ - δ),  dv += Eᵀ a,  dq = dE k / √D,  dk += dEᵀ q / √D

    z divides arrays of D columns instead of S; powers of 2 cost less than powers of e: log₂e goes into the product's scale,
    and torch's `exp` on a CPU is fifty times slower where it underflows, as it does at every masked score.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, tiles: Sequence[_Tile], partial: bool) -> Tensor:
        B, H, T, D = q.shape
        K, S = k.shape[1:3]
        queries = q.reshape(B, K, H // K, T, D)
        allocate = q.new_zeros if partial else q.new_empty
        output = allocate(B, T, K, H // K, D)  # in the order that the next projection reads
        keep = any(ctx.needs_input_grad) and B * H * T * S <= _KEEP_WEIGHTS
        kept = []
        for tile in tiles:
            E, inverse_sum = _exponentials(queries, k, tile)
            o = torch.bmm(E, _keys_of(v, tile)).mul_(inverse_sum)
            output[tile.rows, tile.queries] = _by_position(o, K, H // K)
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
            a = _queries_of(d_output.permute(0, 2, 3, 1, 4), tile) * inverse_sum
            a_delta = _queries_of(delta.permute(0, 2, 3, 1, 4), tile) * inverse_sum
            _keys_of(d_v, tile).baddbmm_(E.transpose(1, 2), a)
            d_E = torch.bmm(a, _keys_of(v, tile).transpose(1, 2)).sub_(a_delta).mul_(E)
            _keys_of(d_k, tile).baddbmm_(d_E.transpose(1, 2), _queries_of(queries, tile))
            d_q[tile.rows, tile.queries] = _by_position(torch.bmm(d_E, _keys_of(k, tile)), K, G)
        scale = 1 / math.sqrt(D)
        return d_q.view(B, T, K * G, D).transpose(1, 2).mul_(scale), d_k.mul_(scale), d_v, None, None


def _exponentials(
    queries: Float[Tensor, "B K G T D"], k: Float[Tensor, "B K S D"], tile: _Tile
) -> tuple[Float[Tensor, "BK Gt window"], Float[Tensor, "BK Gt 1"]]:
    """E of a tile, and 1 / Σ E."""
    K, G, D = queries.shape[1], queries.shape[2], queries.shape[-1]
    rows, keys = _queries_of(queries, tile), _keys_of(k, tile)
    scores = rows.new_empty(*rows.shape[:2], keys.shape[1])
    torch.baddbmm(scores, rows, keys.transpose(1, 2), beta=0, alpha=_LOG2_E / math.sqrt(D), out=scores)
    E = scores.to(torch.promote_types(scores.dtype, torch.float32))
    per_query = E.view(-1, K, G, rows.shape[1] // G, keys.shape[1])
    per_query[..., -tile.mask.shape[-1] :].add_(tile.mask[:, None, None])
    E.sub_(E.amax(-1, keepdim=True)).exp2_()
    inverse_sum = E.sum(-1, keepdim=True).reciprocal_()
    return E.to(rows.dtype), inverse_sum.to(rows.dtype)


def _queries_of(x: Float[Tensor, "B K G T X"], tile: _Tile) -> Float[Tensor, "BK Gt X"]:
    """The tile's rows of x, those of the heads that share a key-value head below each other."""
    part = x[tile.rows, :, :, tile.queries]
    return part.reshape(-1, part.shape[2] * part.shape[3], part.shape[4])


def _by_position(rows: Float[Tensor, "BK Gt D"], K: int, G: int) -> Float[Tensor, "B t K G D"]:
    """The inverse, in the order of the output."""
    return rows.view(-1, K, G, rows.shape[1] // G, rows.shape[2]).permute(0, 3, 1, 2, 4)


def _keys_of(x: Float[Tensor, "B K S D"], tile: _Tile) -> Float[Tensor, "BK window D"]:
    """The tile's window of x, a matrix for each key-value head: a view."""
    return x[tile.rows, :, tile.keys].flatten(0, 1)


def _plan_tiles(mask: AttentionMask) -> list[_Tile]:
    """Tiles of queries in all rows of the batch, with the keys up to the last of them."""
    # Reading where documents end would make a GPU wait for the CPU.
    if mask.packing is not None and torch.device(mask.device).type != "cuda":
        return _document_tiles(mask.packing)
    additive = None if mask.is_causal else mask.additive()
    triangle = AttentionMask(_QUERY_TILE, _QUERY_TILE, mask.device).additive()
    tiles = []
    for start in range(0, mask.T, _QUERY_TILE):
        queries = slice(start, min(start + _QUERY_TILE, mask.T))
        keys = slice(0, mask.S - mask.T + queries.stop)  # later keys are in the future of the whole tile
        length = queries.stop - queries.start
        # Among the keys before the tile's first query, plain causal attention has nothing to hide.
        hidden = triangle[:, :length, :length] if additive is None else additive[:, queries, keys]
        tiles.append(_Tile(slice(None), queries, keys, hidden))
    return tiles


def _document_tiles(packing: Packing) -> list[_Tile]:
    """Tiles that end where a document ends: the time grows with the documents' lengths, not with the row's.

    The branches of a document come after its prefix. Only among their keys, the last of a window, is anything to hide.
    """
    document_ids, branch_ids = packing.document_ids, packing.branch_ids
    triangle = AttentionMask(2 * _QUERY_TILE, 2 * _QUERY_TILE).additive()
    B, T = document_ids.shape
    tiles = []
    for row in range(B):
        one = slice(row, row + 1)
        ends = ((document_ids[row].diff() != 0).nonzero().flatten() + 1).tolist()
        for begin, end in itertools.pairwise([0, *ends, T]):
            fork = end if branch_ids is None else begin + int((branch_ids[row, begin:end] == 0).sum())
            for start, stop in [*_cut(begin, fork), *_cut(fork, end)]:
                hidden = triangle[:, : stop - start, : stop - start]
                if branch_ids is not None and start >= fork:
                    branches = Packing(document_ids[one, fork:stop], branch_ids[one, fork:stop])
                    mask = AttentionMask(stop - fork, stop - fork, packing=branches)
                    hidden = mask.additive()[:, start - fork :]
                tiles.append(_Tile(one, slice(start, stop), slice(begin, stop), hidden))
    return tiles


def _cut(begin: int, end: int) -> list[tuple[int, int]]:
    """Pieces of `_QUERY_TILE` positions, but the last of up to half as many more: fewer, larger products."""
    starts = [begin, *range(begin + _QUERY_TILE, end - _QUERY_TILE // 2, _QUERY_TILE)]
    return list(itertools.pairwise([*starts, end])) if begin < end else []


def _partial_tiles(tiles: Sequence[_Tile], wanted: Bool[Tensor, "B T"]) -> list[_Tile]:
    """What is left of the tiles when only these queries are wanted."""
    positions = torch.arange(wanted.shape[1])
    partial = []
    for tile in tiles:
        for row in range(*tile.rows.indices(len(wanted))):
            inside, hidden = wanted[row, tile.queries], tile.mask[row % len(tile.mask)].unsqueeze(0)
            if inside.all():
                partial.append(_Tile(slice(row, row + 1), tile.queries, tile.keys, hidden))
            elif inside.any():
                queries = positions[tile.queries][inside]
                partial.append(_Tile(slice(row, row + 1), queries, tile.keys, hidden[:, inside]))
    return partial
