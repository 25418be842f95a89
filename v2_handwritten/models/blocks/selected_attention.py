"""Attention in which each query has its own list of keys to look at, whoever made it (sparse_indexer.py does).

    o[t] = softmax over the selected s of (q[t] · k[s] / √D) v[s]

The formula is causal attention under the mask of the selected keys. The version in kernels/fused/gathered_attention.py gathers these keys
and touches no other: its time grows with T · k, not with T². Theory: sparse_indexer.md.

Level 1: transformers scatters the ids into such a mask. Level 3: the same over its own autograd.

    uv run python -c "import torch; from v2_handwritten.models.blocks.selected_attention import *; print(selection_mask(torch.tensor([[[0, -1], [1, 0], [2, 0]]]), 3).allowed().int())"
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from v2_handwritten.models.blocks.attention import causal_attention
from v2_handwritten.models.blocks.attention_mask import AttentionMask


class GivenMask(AttentionMask):
    """A mask that is written down pair by pair, not derived."""

    def __init__(self, allowed: Bool[Tensor, "B T S"]) -> None:
        super().__init__(allowed.shape[1], allowed.shape[2], allowed.device)
        self._given = allowed

    def allowed(self, queries: slice = slice(None)) -> Bool[Tensor, "B t S"]:
        """Whether query t may see key s."""
        return self._given[:, queries]


def selection_mask(selected: Int[Tensor, "B T k"], S: int) -> GivenMask:
    """The mask that shows each query its selected keys only."""
    B, T, _ = selected.shape
    chosen = torch.zeros(
        B, T, S + 1, dtype=torch.bool, device=selected.device
    )  # the last column is that of -1
    return GivenMask(chosen.scatter_(-1, selected % (S + 1), True)[..., :S])


def selected_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S Dv"],
    selected: Int[Tensor, "B T k"],
    mask: AttentionMask,
    dropout_p: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B H T Dv"]:
    """Causal attention under the mask of the selected keys. A faster version may leave 0 where `mask.queries` asks for nothing."""
    return causal_attention(q, k, v, selection_mask(selected, mask.S), dropout_p, generator)
