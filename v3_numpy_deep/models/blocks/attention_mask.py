"""Which keys each query of a forward pass may see: those before it, without padding and without other documents.

    allowed[t, s]  =  s ≤ t  and  attention_mask[s]  and  document[t] = document[s] (and the same branch, packing.py)
                      and  visible(pattern, t, s) in a layer of sparse attention (attention_patterns.py)

A model makes one mask for a pass, and all its blocks share it; layers with the same pattern share `mask.of(pattern)`. It is an array of
booleans, made by broadcasting. The plain kernel adds `additive` to the scores: 0 where allowed, and so little elsewhere that the softmax
gives 0. The fused kernel plans tiles from the same object (autograd/fused/attention.py), once, and keeps these in `plan`.

Level 1: transformers' `create_causal_mask`. Level 2: the same class over torch.

    uv run python -c "from v3_numpy_deep.models.blocks.attention_mask import AttentionMask; print(AttentionMask(2, 4).allowed())"
"""

import copy
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from v3_numpy_deep.autograd import Array
from v3_numpy_deep.models.blocks.attention_patterns import AttentionPattern, visible
from v3_numpy_deep.models.packing import Packing, positions_of

# Added to a score that must not count; finite, so that a row without any key stays free of NaN.
MASKED = -1e30


class AttentionMask:
    """Causal attention of T queries, the last of S positions.

    attention_mask: [B, S], 0 marks padding among the keys. packing: documents in a row, which do not see each other; T = S.
    """

    def __init__(
        self,
        T: int,
        S: int,
        attention_mask: Int[Array, "B S"] | Bool[Array, "B S"] | None = None,
        packing: Packing | None = None,
    ) -> None:
        assert attention_mask is None or packing is None, "packed rows mark padding by a document of its own"
        assert packing is None or T == S, "packed rows have no past"
        self.T, self.S, self.attention_mask, self.packing = T, S, attention_mask, packing
        self.queries: Bool[Array, "B T"] | None = None  # those whose outputs are wanted; None is all
        self._restrict(AttentionPattern())

    def _restrict(self, pattern: AttentionPattern) -> None:
        """Take this pattern, and forget what was derived from the mask without it."""
        self.pattern = pattern
        self.plan: Any = None  # what the fused kernel has derived from this mask
        self._restricted: dict[AttentionPattern, AttentionMask] = {}
        self._allowed: Bool[Array, "#B T S"] | None = None
        self._additive: Float[Array, "#B T S"] | None = None

    def of(self, pattern: AttentionPattern) -> "AttentionMask":
        """The same mask restricted by the pattern; made once for all layers that have it."""
        if pattern == self.pattern or pattern.is_full:
            return self
        assert self.pattern.is_full, "this mask has a pattern already"
        if pattern not in self._restricted:
            self._restricted[pattern] = mask = copy.copy(self)
            mask._restrict(pattern)
        return self._restricted[pattern]

    def only(self, queries: Bool[Array, "B T"]) -> "AttentionMask":
        """The same mask where only the outputs of these queries are wanted; a kernel may leave 0 at the others."""
        mask = copy.copy(self)
        mask.queries, mask.plan, mask._restricted = queries, None, {}
        return mask

    def text_positions(self) -> tuple[Int[Array, "#B T"], Int[Array, "#B S"]]:
        """Where the queries and the keys stand in their texts; any position at padding."""
        keys = np.arange(self.S)[None]
        if self.packing is not None:
            keys = self.packing.positions()
        elif self.attention_mask is not None:
            keys = positions_of(self.attention_mask)
        return keys[:, self.S - self.T :], keys

    def allowed(self, queries: slice = slice(None)) -> Bool[Array, "#B t S"]:
        """Whether query t may see key s, for these of the T queries; for all of them, made once."""
        if self._allowed is not None:
            return self._allowed[:, queries]
        places = np.arange(self.S)
        allowed = (places <= places[self.S - self.T :][queries, None])[None]
        if self.attention_mask is not None:
            allowed = allowed & self.attention_mask.astype(bool)[:, None]
        if self.packing is not None:
            allowed = allowed & self.packing.same_text(queries)
        if not self.pattern.is_full:
            query_positions, key_positions = self.text_positions()
            allowed = allowed & visible(self.pattern, query_positions[:, queries], key_positions)
        if queries == slice(None):
            self._allowed = allowed
        return allowed

    def additive(self, dtype: Any = np.float32) -> Float[Array, "#B T S"]:
        """0 where query t may see key s, `MASKED` elsewhere; made once."""
        if self._additive is None or self._additive.dtype != dtype:
            self._additive = np.where(self.allowed(), 0.0, MASKED).astype(dtype)
        return self._additive
