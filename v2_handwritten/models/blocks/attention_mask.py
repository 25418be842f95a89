"""Which keys each query of a forward pass may see: those before it, without padding and without other documents.

    allowed(t, s)  =  s ≤ t  and  attention_mask[s]  and  document[t] = document[s] (and the same branch, in packing.py)
                      and  visible(pattern, t, s) in a layer of sparse attention (attention_patterns.py)

A model makes one mask for a pass, and all its blocks share it; layers with the same pattern share `mask.of(pattern)`. The plain kernel adds `additive` to the scores: 0 where allowed, and
so little elsewhere that the softmax gives 0. The fused kernel never forms that square: it derives from the same object which tiles of
it hold anything, and keeps them in `plans`.

Level 1: transformers' `create_causal_mask`. Level 3: the same class over NumPy.

    uv run python -c "from v2_handwritten.models.blocks.attention_mask import AttentionMask; print(AttentionMask(2, 4).allowed())"
"""

import copy
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from v2_handwritten.models.blocks.attention_patterns import AttentionPattern, visible
from v2_handwritten.models.packing import Packing, positions_of

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
        device: torch.device | str = "cpu",
        attention_mask: Int[Tensor, "B S"] | Bool[Tensor, "B S"] | None = None,
        packing: Packing | None = None,
    ) -> None:
        assert attention_mask is None or packing is None, "packed rows mark padding by a document of its own"
        assert packing is None or T == S, "packed rows have no past"
        self.T, self.S, self.device = T, S, device
        self.attention_mask = attention_mask
        self.packing = packing
        self.queries: Bool[Tensor, "B T"] | None = None  # those whose outputs are wanted; None is all
        self._restrict(AttentionPattern())

    def _restrict(self, pattern: AttentionPattern) -> None:
        """Take this pattern, and forget what was derived from the mask without it."""
        self.pattern = pattern
        self.plans: dict[str, Any] = {}  # what each kernel has derived from this mask
        self._additive: dict[torch.dtype, Tensor] = {}
        self._restricted: dict[AttentionPattern, AttentionMask] = {}

    @property
    def is_causal(self) -> bool:
        """Whether only the future is hidden."""
        return self.attention_mask is None and self.packing is None and self.pattern.is_full

    def of(self, pattern: AttentionPattern) -> "AttentionMask":
        """The same mask restricted by the pattern; made once for all layers that have it."""
        if pattern == self.pattern or pattern.is_full:
            return self
        assert self.pattern.is_full, "this mask has a pattern already"
        if pattern not in self._restricted:
            self._restricted[pattern] = mask = copy.copy(self)
            mask._restrict(pattern)
        return self._restricted[pattern]

    def only(self, queries: Bool[Tensor, "B T"]) -> "AttentionMask":
        """The same mask where only the outputs of these queries are wanted; a kernel may leave 0 at the others."""
        mask = copy.copy(self)
        mask.queries, mask._restricted = queries, {}
        return mask

    def text_positions(self) -> tuple[Int[Tensor, "#B T"], Int[Tensor, "#B S"]]:
        """Where the queries and the keys stand in their texts; any position at padding."""
        if self.packing is not None:
            keys = self.packing.positions()
        elif self.attention_mask is not None:
            keys = positions_of(self.attention_mask)
        else:
            keys = torch.arange(self.S, device=self.device).unsqueeze(0)
        return keys[:, self.S - self.T :], keys

    def allowed(self, queries: slice = slice(None)) -> Bool[Tensor, "#B t S"]:
        """Whether query t may see key s, for these of the T queries."""
        positions = torch.arange(self.S, device=self.device)
        seen = (positions <= positions[self.S - self.T :][queries, None]).unsqueeze(0)
        if self.attention_mask is not None:
            seen = seen & self.attention_mask.bool().unsqueeze(1)
        if self.packing is not None:
            seen = seen & self.packing.same_text(queries)
        if self.pattern.is_full:
            return seen
        query_positions, key_positions = self.text_positions()
        return seen & visible(self.pattern, query_positions[:, queries], key_positions)

    def additive(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "#B T S"]:
        """0 where query t may see key s, `MASKED` elsewhere (in float16, its smallest number); made once."""
        if dtype not in self._additive:
            allowed, masked = self.allowed(), max(MASKED, torch.finfo(dtype).min)
            self._additive[dtype] = torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, masked)
        return self._additive[dtype]
