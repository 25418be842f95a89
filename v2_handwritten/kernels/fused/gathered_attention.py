"""Attention to selected keys that touches no other key, in tiles of queries, with its derivative.

For a tile of queries the selected keys and values are gathered side by side, [n, k, D]: attention is then a small product for each query,
time grows with T · k, and memory with the tile. The backward pass gathers again and adds each key's gradient where the key stands.
Derivation: models/blocks/sparse_indexer.md.

Level 3: the same over NumPy.

    selected_attention(q, k, v, selected, mask)   # as models/blocks/selected_attention.py
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from v2_handwritten.models.blocks import selected_attention as plain
from v2_handwritten.models.blocks.attention_mask import MASKED, AttentionMask

_TILE_ELEMENTS = 2**20  # numbers that are gathered at once
_LOG2_E = math.log2(math.e)


def selected_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S Dv"],
    selected: Int[Tensor, "B T k"],
    mask: AttentionMask,
    dropout_p: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B H T Dv"]:
    """`plain.selected_attention`, which it leaves dropout to. 0 for queries without keys, or not in `mask.queries`."""
    if dropout_p > 0:
        return plain.selected_attention(q, k, v, selected, mask, dropout_p, generator)
    wanted = torch.arange(selected.shape[0] * selected.shape[1], device=q.device)
    if mask.queries is not None and not q.is_cuda:  # a GPU does not wait for their number
        wanted = wanted[mask.queries.flatten()]
    return _SelectedAttention.apply(q, k, v, selected, wanted)


class _SelectedAttention(torch.autograd.Function):
    """For each query, and its k keys:  P = 2^(S - L) with S = log₂e q kᵀ / √D and L = log₂ Σ 2^S,  o = P v

    δ = Σ do o over D,   dS = P (do vᵀ - δ),   dv += Pᵀ do,   dq = dS k / √D,   dk += dSᵀ q / √D

    Queries of all sequences are one list; so are the keys.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, selected: Tensor, wanted: Tensor) -> Tensor:
        B, H, T, _ = q.shape
        queries, keys, values = _by_token(q, k.shape[1]), _by_key(k), _by_key(v)
        K, G = queries.shape[0], queries.shape[2]
        output = queries.new_zeros(K, B * T, G, v.shape[-1])
        log_sums = torch.zeros_like(output[..., :1])
        for rows in tiles(wanted, K * selected.shape[-1] * (k.shape[-1] + v.shape[-1])):
            ids, hidden = places(selected, rows, k.shape[2])
            scores = _scores(queries[:, rows], _gathered(keys, ids), hidden)
            # No real score is so small, and every masked one is smaller: without keys, all weights are 0.
            largest = scores.amax(-1, keepdim=True).clamp_(min=MASKED / 2)
            weights = scores.sub_(largest).exp2_()
            total = weights.sum(-1, keepdim=True)
            total.masked_fill_(total == 0, 1)
            output[:, rows] = (weights @ _gathered(values, ids)).div_(total)
            log_sums[:, rows] = largest.add_(total.log2_())
        ctx.save_for_backward(q, k, v, selected, wanted, output, log_sums)
        return output.view(K, B, T, G, -1).permute(1, 0, 3, 2, 4).reshape(B, H, T, -1).to(q.dtype)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, selected, wanted, output, log_sums = ctx.saved_tensors
        (B, H, T, D), K = q.shape, k.shape[1]
        queries, keys, values = _by_token(q, K), _by_key(k), _by_key(v)
        d_rows = _by_token(d_output, K)
        delta = (d_rows * output).sum(-1, keepdim=True)
        d_q, d_k, d_v = torch.zeros_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
        for rows in tiles(wanted, K * selected.shape[-1] * (D + v.shape[-1])):
            ids, hidden = places(selected, rows, k.shape[2])
            near_keys, d_o = _gathered(keys, ids), d_rows[:, rows]
            P = _scores(queries[:, rows], near_keys, hidden).sub_(log_sums[:, rows]).exp2_()
            d_v.index_add_(1, ids.flatten(), (P.mT @ d_o).flatten(1, 2))
            d_S = (d_o @ _gathered(values, ids).mT).sub_(delta[:, rows]).mul_(P)
            d_q[:, rows] = d_S @ near_keys
            d_k.index_add_(1, ids.flatten(), (d_S.mT @ queries[:, rows]).flatten(1, 2))
        scale = 1 / math.sqrt(D)
        d_q = d_q.view(K, B, T, -1, D).permute(1, 0, 3, 2, 4).reshape(B, H, T, D)
        d_k, d_v = (x.view(K, B, -1, x.shape[-1]).transpose(0, 1) for x in (d_k, d_v))
        return (d_q * scale).to(q.dtype), (d_k * scale).to(k.dtype), d_v.to(v.dtype), None, None


def _by_token(x: Float[Tensor, "B H T D"], K: int) -> Float[Tensor, "K BT G D"]:
    """Rows of queries: of every token, those of the heads that share a key-value head; in float32 at least."""
    B, H, T, D = x.shape
    rows = x.reshape(B, K, H // K, T, D).permute(1, 0, 3, 2, 4).reshape(K, B * T, H // K, D)
    return rows.to(torch.promote_types(x.dtype, torch.float32))


def _by_key(x: Float[Tensor, "B K S D"]) -> Float[Tensor, "K BS D"]:
    return x.transpose(0, 1).flatten(1, 2).to(torch.promote_types(x.dtype, torch.float32))


def tiles(wanted: Int[Tensor, "N"], elements: int) -> tuple[Tensor, ...]:
    """Queries that are computed together: as many as the elements of one allow."""
    return wanted.split(max(1, _TILE_ELEMENTS // elements)) if len(wanted) else ()


def places(
    selected: Int[Tensor, "B T k"], rows: Int[Tensor, "n"], S: int
) -> tuple[Int[Tensor, "n k"], Bool[Tensor, "n 1 k"]]:
    """Where the selected keys of these queries stand among the keys of all sequences, and which of them there are not."""
    ids = selected.flatten(0, 1)[rows]
    sequence = torch.div(rows, selected.shape[1], rounding_mode="floor")
    return ids.clamp(min=0) + S * sequence.unsqueeze(1), (ids < 0).unsqueeze(1)


def _gathered(x: Float[Tensor, "K BS D"], ids: Int[Tensor, "n k"]) -> Float[Tensor, "K n k D"]:
    return x.index_select(1, ids.flatten()).view(x.shape[0], *ids.shape, x.shape[-1])


def _scores(
    queries: Float[Tensor, "K n G D"], keys: Float[Tensor, "K n k D"], hidden: Bool[Tensor, "n 1 k"]
) -> Float[Tensor, "K n G k"]:
    """log₂e q kᵀ / √D"""
    scores = (queries * (_LOG2_E / math.sqrt(queries.shape[-1]))) @ keys.mT
    return scores.masked_fill_(hidden, MASKED)
