"""Attention in which each query has its own list of keys to look at, whoever made it (sparse_indexer.py does).

    o[t] = softmax over the selected s of (q[t] · k[s] / √D) v[s]

The formula is causal attention under the mask of the selected keys, over primitive operations. The fused version gathers these keys, touches no
other, and has a derivative of its own (autograd/fused/gathered_attention.py).

Level 1: transformers scatters the ids into such a mask. Level 2: the same over torch.

    uv run python -c "import numpy as np; from v3_numpy_deep.models.blocks.selected_attention import *; print(selection_mask(np.array([[[0, -1], [1, 0], [2, 0]]]), 3).allowed().astype(int))"
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from v3_numpy_deep.autograd import Array, Tensor
from v3_numpy_deep.models.blocks.attention import causal_attention
from v3_numpy_deep.models.blocks.attention_mask import AttentionMask


class GivenMask(AttentionMask):
    """A mask that is written down pair by pair, not derived."""

    def __init__(self, allowed: Bool[Array, "B T S"]) -> None:
        super().__init__(*allowed.shape[1:])
        self._given = allowed

    def allowed(self, queries: slice = slice(None)) -> Bool[Array, "B t S"]:
        """Whether query t may see key s."""
        return self._given[:, queries]


def selection_mask(selected: Int[Array, "B T k"], S: int) -> GivenMask:
    """The mask that shows each query its selected keys only."""
    chosen = np.zeros((*selected.shape[:2], S + 1), bool)  # the last column is that of -1
    np.put_along_axis(chosen, selected, True, axis=-1)
    return GivenMask(chosen[..., :S])


def selected_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S Dv"],
    selected: Int[Array, "B T k"],
    mask: AttentionMask,
    dropout_p: float = 0.0,
    generator: np.random.Generator | None = None,
) -> Float[Tensor, "B H T Dv"]:
    """Causal attention under the mask of the selected keys. A faster version may leave 0 where `mask.queries` asks for nothing."""
    return causal_attention(q, k, v, selection_mask(selected, mask.S), dropout_p, generator)
