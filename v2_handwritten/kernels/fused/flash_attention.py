"""FlashAttention: exact attention over tiles of queries and keys in any order, in memory that grows with the length and not its square.

Dao et al. 2022, and Dao 2023 (FlashAttention-2), whose algorithms 1 and 2 these are; the online softmax is Milakov & Gimelshein's
(2018). A query meets its keys tile by tile and carries three things along: the largest score so far m, the sum z of exp(score - m),
and the sum o of exp(score - m) v. Where a new tile raises m, what was summed before is multiplied by exp(old m - new m). Theory:
flash_attention.md.

Since the tiles may be any, this is also the kernel of sparse patterns: it computes the tiles that the pattern keeps. Learned sinks and
soft-capped scores are a line each.

Level 3: one kernel for all cases, whose tiles are softmaxes of their own, merged by their log-sums.

    flash_attention(q, k, v, AttentionMask(T, S).of(AttentionPattern("sliding_attention", 512)))
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from v2_handwritten.kernels.fused.attention_tiles import (
    Tile,
    by_position,
    keys_of,
    partial_tiles,
    plan_pieces,
    queries_of,
)
from v2_handwritten.models.blocks.attention_mask import MASKED, AttentionMask

_LOG2_E = math.log2(math.e)
# Below every real score and above every masked one: a query without any key keeps it, and its sum stays 0.
_NOTHING_YET = MASKED / 2


def flash_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S Dv"],
    mask: AttentionMask,
    sinks: Float[Tensor, "H"] | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "B H T Dv"]:
    """`causal_attention` of models/blocks/attention.py, without dropout. 0 for queries without keys, or not in `mask.queries`."""
    if "pieces" not in mask.plans:  # the first block plans for all
        mask.plans["pieces"] = plan_pieces(mask)
    groups = mask.plans["pieces"]
    if mask.queries is not None and not q.is_cuda:  # a GPU does not wait for their number
        groups = [[tile] for group in groups for tile in partial_tiles(group, mask.queries)]
    return _FlashAttention.apply(q, k, v, sinks, groups, softcap)


class _FlashAttention(torch.autograd.Function):
    """Forward, for each tile: S = q kᵀ / √D + mask, and with m' = max(m, max S)

        z ← z 2^(m - m') + Σ 2^(S - m')        o ← o 2^(m - m') + 2^(S - m') v        m ← m'

    and at the end o / z, and L = m + log₂ z, which is all that is kept. Backward, with P = 2^(S - L) and δ = Σ do o over D:

        dS = P (do vᵀ - δ),   dv += Pᵀ do,   dq += dS k / √D,   dk += dSᵀ q / √D

    Scores are in units of log 2, since powers of 2 are faster (attention.py). A sink is a score without a value: it is the m that
    its head begins with, z = 1 and o = 0, and its gradient is that of a score whose v is 0, -P δ.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        groups: Sequence[list[Tile]],
        softcap: float | None,
    ) -> Tensor:
        B, H, T, D = q.shape
        K, G, Dv = k.shape[1], H // k.shape[1], v.shape[-1]
        wide = torch.promote_types(q.dtype, torch.float32)
        queries = q.reshape(B, K, G, T, D)
        output = q.new_zeros(B, T, K, G, Dv, dtype=wide)
        largest = torch.full_like(output[..., :1], _NOTHING_YET)
        total = torch.zeros_like(largest)
        if sinks is not None:
            largest.copy_(sinks.view(K, G, 1) * _LOG2_E)
            total.fill_(1)
        running = [x.permute(0, 2, 3, 1, 4) for x in (largest, total, output)]
        for group in groups:
            rows = queries_of(queries, group[0]).to(wide)
            m, z, o = (queries_of(x, group[0]) for x in running)
            for tile in group:
                scores, _ = _scores(rows, k, tile, softcap)
                new_m = torch.maximum(m, scores.amax(-1, keepdim=True))
                weights, shrink = scores.sub_(new_m).exp2_(), m.sub(new_m).exp2_()
                z = (z * shrink).add_(weights.sum(-1, keepdim=True))
                o = torch.baddbmm(o * shrink, weights, keys_of(v, tile).to(wide))
                m = new_m
            for x, part in ((largest, m), (total, z), (output, o)):
                x[group[0].rows, group[0].queries] = by_position(part, K, G)
        total.masked_fill_(total == 0, 1)
        output.div_(total)
        ctx.save_for_backward(q, k, v, sinks, output, largest.add_(total.log2_()))
        ctx.groups, ctx.softcap = groups, softcap
        return output.to(q.dtype).view(B, T, H, Dv).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None, None]:
        q, k, v, sinks, output, log_sums = ctx.saved_tensors
        (B, H, T, D), K, wide = q.shape, k.shape[1], output.dtype
        G, scale = H // K, 1 / math.sqrt(D)
        queries = q.reshape(B, K, G, T, D)
        d_output = d_output.transpose(1, 2).reshape(output.shape).to(wide)
        delta = (d_output * output).sum(-1, keepdim=True)
        d_q, d_k, d_v = (
            torch.zeros(B, T, K, G, D, dtype=wide, device=q.device),
            k.new_zeros(k.shape, dtype=wide),
            v.new_zeros(v.shape, dtype=wide),
        )
        by_head = [x.permute(0, 2, 3, 1, 4) for x in (log_sums, delta, d_output)]
        for group in ctx.groups:
            rows = queries_of(queries, group[0]).to(wide)
            L, row_delta, d_o = (queries_of(x, group[0]) for x in by_head)
            d_rows = torch.zeros_like(rows)
            for tile in group:
                scores, slope = _scores(rows, k, tile, ctx.softcap)
                P = scores.sub_(L).exp2_()
                keys_of(d_v, tile).baddbmm_(P.transpose(1, 2), d_o)
                d_S = torch.bmm(d_o, keys_of(v, tile).to(wide).transpose(1, 2)).sub_(row_delta).mul_(P)
                if slope is not None:
                    d_S.mul_(slope)
                keys_of(d_k, tile).baddbmm_(d_S.transpose(1, 2), rows)
                d_rows.baddbmm_(d_S, keys_of(k, tile).to(wide))
            d_q[group[0].rows, group[0].queries] += by_position(d_rows, K, G)
        d_sinks = None
        if sinks is not None:
            P = torch.exp2(sinks.view(K, G, 1) * _LOG2_E - log_sums)
            d_sinks = -(P * delta).sum((0, 1)).view(H).to(sinks.dtype)
        d_q = d_q.view(B, T, H, D).transpose(1, 2).mul_(scale)
        return d_q.to(q.dtype), d_k.mul_(scale).to(k.dtype), d_v.to(v.dtype), d_sinks, None, None


def _scores(
    rows: Float[Tensor, "BK Gt D"], k: Float[Tensor, "B K S D"], tile: Tile, softcap: float | None
) -> tuple[Float[Tensor, "BK Gt n"], Float[Tensor, "BK Gt n"] | None]:
    """log₂e (q kᵀ / √D + mask) of a tile, and the derivative of the soft cap, where there is one."""
    columns = keys_of(k, tile).to(rows.dtype).transpose(1, 2)
    scores = rows.new_empty(*rows.shape[:2], columns.shape[2])
    factor = _LOG2_E if softcap is None else 1 / softcap
    torch.baddbmm(scores, rows, columns, beta=0, alpha=factor / math.sqrt(rows.shape[-1]), out=scores)
    slope = None
    if softcap is not None:  # c tanh(s/c), whose derivative is 1 - tanh²
        slope = 1 - scores.tanh_().square()
        scores.mul_(softcap * _LOG2_E)
    if tile.mask is not None:
        t, n = tile.mask.shape[-2], scores.shape[-1]
        per_query = scores.view(-1, k.shape[1], scores.shape[1] // t, t, n)
        per_query[..., -tile.mask.shape[-1] :].add_(tile.mask[:, None, None])
    return scores, slope
