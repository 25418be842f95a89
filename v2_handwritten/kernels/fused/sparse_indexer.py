"""The loss of an indexer, some queries at a time: neither its scores nor the weights of the attention exist as a whole.

The loss is a mean over queries, so each tile of them gives its part of the loss and, at once, of its gradients. What a tile computes are
the plain formulas, on the keys that its queries may see or, of selected keys, on these alone, gathered.

Level 3: the same over NumPy.

    attention_kl(queries, keys, weights, q, k, selected, mask)   # as models/blocks/sparse_indexer.py
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from v2_handwritten.kernels.fused.gathered_attention import places, tiles
from v2_handwritten.models.blocks import sparse_indexer as plain
from v2_handwritten.models.blocks.attention import attention_weights
from v2_handwritten.models.blocks.attention_mask import AttentionMask
from v2_handwritten.models.blocks.selected_attention import GivenMask

_TILE_SCORES = 2**20  # scores of a tile, those of all heads


def attention_kl(
    queries: Float[Tensor, "B T Hi Di"],
    keys: Float[Tensor, "B S Di"],
    weights: Float[Tensor, "B T Hi"],
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    selected: Int[Tensor, "B T k"] | None,
    mask: AttentionMask,
) -> Float[Tensor, ""]:
    """`plain.attention_kl`."""
    return _AttentionKL.apply(queries, keys, weights, q, k, selected, mask)


class _Part(NamedTuple):
    """A tile: inputs of the indexer, where they stand among all tokens, queries and keys of the attention, what may be seen."""

    inputs: plain.IndexInputs
    query_places: Int[Tensor, "n"]
    key_places: Int[Tensor, "m"]
    q: Tensor
    k: Tensor
    allowed: Bool[Tensor, "b t s"]


class _AttentionKL(torch.autograd.Function):
    """Σ over tiles of (loss of the tile · its queries) / all queries, and the same of the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        weights: Tensor,
        q: Tensor,
        k: Tensor,
        selected: Tensor | None,
        mask: AttentionMask,
    ) -> Tensor:
        index = plain.IndexInputs(queries, keys, weights)
        gradients = [torch.zeros_like(x).flatten(0, 1) for x in index]
        total = torch.zeros((), dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
        count = torch.zeros((), dtype=torch.int64, device=q.device)
        parts = _dense(index, q, k, mask) if selected is None else _gathered(index, q, k, selected)
        for part in parts:
            seen, number = GivenMask(part.allowed), part.allowed.any(-1).sum()
            with torch.enable_grad():
                leaves = [x.detach().requires_grad_() for x in part.inputs]
                target = attention_weights(part.q, part.k, seen).sum((1, 2))
                loss = plain.indexer_loss(plain.index_scores(*leaves), target, None, seen) * number
                found = torch.autograd.grad(loss, leaves)
            total, count = total + loss.detach(), count + number
            rows = (part.query_places, part.key_places, part.query_places)
            for gradient, places_of, new in zip(gradients, rows, found, strict=True):
                gradient.index_add_(0, places_of, new.flatten(0, 1))
        count.clamp_(min=1)
        ctx.save_for_backward(
            *((gradient / count).view(x.shape) for gradient, x in zip(gradients, index, strict=True))
        )
        return total / count

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradient * d_loss for gradient in ctx.saved_tensors), None, None, None, None


def _dense(index: plain.IndexInputs, q: Tensor, k: Tensor, mask: AttentionMask) -> Iterator[_Part]:
    """Some queries of each sequence, and all keys that are not in the future of all of them."""
    (B, T, Hi, _), H, S = index.queries.shape, q.shape[1], mask.S
    rows, sequence = max(1, _TILE_SCORES // (B * (H + Hi) * S)), torch.arange(B, device=q.device).unsqueeze(1)
    for start in range(0, T, rows):
        stop = min(start + rows, T)
        part, end = slice(start, stop), S - T + stop
        yield _Part(
            plain.IndexInputs(index.queries[:, part], index.keys[:, :end], index.weights[:, part]),
            (T * sequence + torch.arange(start, stop, device=q.device)).flatten(),
            (S * sequence + torch.arange(end, device=q.device)).flatten(),
            q[:, :, part],
            k[:, :, :end],
            mask.allowed(part)[..., :end].expand(B, -1, -1),
        )


def _gathered(index: plain.IndexInputs, q: Tensor, k: Tensor, selected: Tensor) -> Iterator[_Part]:
    """Some queries of the whole batch, each by itself, with the keys that are selected for it."""
    queries, keys, weights = (x.flatten(0, 1) for x in index)
    q_rows, k_rows = (x.transpose(1, 2).flatten(0, 1) for x in (q, k))
    everything = torch.arange(len(queries), device=q.device)
    for rows in tiles(everything, selected.shape[-1] * (k_rows[0].numel() + keys.shape[-1])):
        ids, hidden = places(selected, rows, k.shape[2])
        yield _Part(
            plain.IndexInputs(queries[rows].unsqueeze(1), keys[ids], weights[rows].unsqueeze(1)),
            rows,
            ids.flatten(),
            q_rows[rows].unsqueeze(2),
            k_rows[ids].transpose(1, 2),
            ~hidden,
        )
