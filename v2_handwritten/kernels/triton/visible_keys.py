"""What a mask shows to each query, as two intervals of keys, and which blocks of queries and keys hold anything of it.

    visible(t, s)  =  near_start[t] ≤ s ≤ t   or   far_start[t] ≤ s < far_end[t]

The near interval ends at the query itself: all of its text, or a window of it, or its chunk. The far one holds the text's first tokens,
once they have left the near one. A document is nothing but a bound on both. Three numbers a query, instead of T · S booleans: FlashMask
(Wang et al. 2024) does the same for each key. What is no interval, padding among the keys, is one boolean a key.

From the intervals' bounds over a block follows which pairs of blocks hold a visible pair. They become lists, as in FlexAttention's
`BlockMask` (Dong et al. 2024), so that a program walks through what it must compute and nothing else. No step waits for the GPU.

    visible_keys(AttentionMask(T, S).of(AttentionPattern("sliding_attention", 512)), block=64)
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from v2_handwritten.models.blocks.attention_mask import AttentionMask

PATTERNS = ("full_attention", "sliding_attention", "chunked_attention")  # those that are intervals


@dataclass(frozen=True)
class VisibleKeys:
    """The plan that all layers of a pass with the same mask share; its first axis has a plan for each row, or one for all."""

    intervals: Int[Tensor, "plans 3 T"]  # near_start, far_start, far_end
    is_real: Bool[Tensor, "plans S"] | None  # False at padding
    key_blocks: Int[
        Tensor, "plans NQ NK1"
    ]  # for each block of queries: how many blocks of keys, and their numbers
    query_blocks: Int[Tensor, "plans NK NQ1"]  # the same the other way round


def visible_keys(mask: AttentionMask, block: int) -> VisibleKeys:
    """The intervals of each query, and the lists for blocks of `block` queries and `block` keys."""
    query_positions, _ = mask.text_positions()
    near_position = _near_position(mask, query_positions)
    far_end_position = near_position.clamp(max=mask.pattern.num_sink_tokens)
    near_start, far_start, far_end = (
        _column(mask, position)
        for position in (near_position, torch.zeros_like(near_position), far_end_position)
    )
    is_empty = far_end_position == 0
    far_start, far_end = far_start.masked_fill(is_empty, mask.S), far_end.masked_fill(is_empty, 0)
    intervals = torch.stack([near_start, far_start, far_end], 1)
    is_real = None if mask.attention_mask is None else mask.attention_mask.bool()
    held = _held_blocks(intervals, is_real, mask, block)
    return VisibleKeys(
        intervals.int().contiguous(),
        None if is_real is None else is_real.contiguous(),
        _lists(held),
        _lists(held.transpose(1, 2)),
    )


def _near_position(mask: AttentionMask, t: Int[Tensor, "#B T"]) -> Int[Tensor, "#B T"]:
    """Where in its text the near interval of a query begins, whose own position is t."""
    size = mask.pattern.size
    if mask.pattern.kind == "sliding_attention":
        return (t - size + 1).clamp(min=0)
    if mask.pattern.kind == "chunked_attention":
        return t // size * size
    return torch.zeros_like(t)


def _column(mask: AttentionMask, position: Int[Tensor, "#B T"]) -> Int[Tensor, "#B T"]:
    """The column of the token with this position in the text of each query."""
    if mask.attention_mask is not None:  # so many real tokens come before it
        counts = mask.attention_mask.long().cumsum(-1)
        return torch.searchsorted(counts, position.contiguous() + 1)
    columns = torch.arange(mask.S - mask.T, mask.S, device=position.device)
    return columns - mask.text_positions()[0] + position


def _held_blocks(
    intervals: Int[Tensor, "plans 3 T"],
    is_real: Bool[Tensor, "plans S"] | None,
    mask: AttentionMask,
    block: int,
) -> Bool[Tensor, "plans NQ NK"]:
    """Whether a block of queries may see anything of a block of keys, by the bounds of their intervals.

    The intervals of queries next to each other overlap or touch, so that their union is an interval too. Where it is not (texts of
    which several have tokens far behind), a block too many is computed, and its mask hides all of it.
    """
    T, S = mask.T, mask.S
    rest = -T % block
    near_start = (
        torch.nn.functional.pad(intervals[:, 0], (0, rest), value=S)
        .unflatten(-1, (-1, block))
        .amin(-1, keepdim=True)
    )
    far_start = (
        torch.nn.functional.pad(intervals[:, 1], (0, rest), value=S)
        .unflatten(-1, (-1, block))
        .amin(-1, keepdim=True)
    )
    far_end = (
        torch.nn.functional.pad(intervals[:, 2], (0, rest), value=0)
        .unflatten(-1, (-1, block))
        .amax(-1, keepdim=True)
    )
    first_key = torch.arange(0, S, block, device=intervals.device)  # of each block of keys
    last_query = S - T + torch.arange(block - 1, T + rest, block, device=intervals.device).clamp(max=T - 1)
    near = (first_key + block > near_start) & (first_key <= last_query[:, None])
    far = (first_key + block > far_start) & (first_key < far_end)
    held = near | far
    if is_real is not None:
        held &= (
            torch.nn.functional.pad(is_real, (0, -S % block)).unflatten(-1, (-1, block)).any(-1).unsqueeze(1)
        )
    return held


def _lists(held: Bool[Tensor, "plans X Y"]) -> Int[Tensor, "plans X Y1"]:
    """[2, 0, 3, …] for [True, False, False, True]: how many are held, and which; what stands behind them means nothing."""
    numbers = held.int().argsort(dim=-1, descending=True, stable=True)
    return torch.cat([held.sum(-1, keepdim=True), numbers], -1).int().contiguous()
