"""Rows of different lengths in one batch: positions, attention and the last real token under padding on either side.

A batch for training is padded on the right, one for generation on the left, and a rollout on both. Three things then go
wrong without an error message: absolute positions start at the padding, tokens look at padding, and "the last token" of
a row is padding. All three are answered here, from the attention mask, which is 1 where a token counts. The ids are never
asked: a real token may well have the id of the padding (many models pad with the token that ends a text).

Level 1: transformers derives the same from `attention_mask` and `pad_token_id`. Level 3: the same over NumPy.

    python -c "import torch; from v2_handwritten.models.padding import *; print(last_positions(torch.tensor([[0, 1, 1], [1, 1, 0]])))"
"""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def positions_of(attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """0, 1, 2, … along the real tokens of each row; padding gets a position that exists, and that nobody reads."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def last_positions(attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"]) -> Int[Tensor, "B"]:
    """Index of the last real token of each row, whichever side the padding is on."""
    assert bool(attention_mask.any(-1).all()), "a row of nothing but padding has no last token"
    T = attention_mask.shape[-1]
    return (attention_mask.long() * torch.arange(T, device=attention_mask.device)).argmax(-1)


def padded_inputs(
    attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None,
) -> dict[str, Any]:
    """What `Transformer.hidden_states` must be told of the padding: nothing at all, where it is only on the right.

    Attention is causal, so no real token sees what comes after it; and without a mask the faster kernels may be used.
    """
    if attention_mask is None:
        return {}
    real = attention_mask.bool()
    if bool((real[:, 1:] <= real[:, :-1]).all()):
        return {}
    return {"attention_mask": attention_mask, "position_ids": positions_of(attention_mask)}
