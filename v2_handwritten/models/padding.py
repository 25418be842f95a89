"""Rows of different lengths in one batch: positions, attention and the last real token under padding on either side.

A batch for training is padded on the right, one for generation on the left, and a rollout on both. Three things then go
wrong without an error message: absolute positions start at the padding, tokens look at padding, and "the last token" of
a row is padding. All three are answered here, from the attention mask, which is 1 where a token counts. The ids are never
asked: a real token may well have the id of the padding (many models pad with the token that ends a text).

Level 1: transformers derives the same from `attention_mask` and `pad_token_id`. Level 3: the same over NumPy.

    python -c "import torch; from v2_handwritten.models.padding import *; print(last_positions(torch.tensor([[0, 1, 1], [1, 1, 0]])))"
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
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


@dataclass(frozen=True)
class Packing:
    """Where the real tokens of B rows went when padding was taken out: R longer rows of W tokens, each row of the batch a document."""

    place: Int64[np.ndarray, "B T"]  # slot of each real token among the R · W; 0 at padding
    position_ids: Int64[np.ndarray, "R W"]
    document_ids: Int64[np.ndarray, "R W"]


def pack_rows(attention_mask: Int[np.ndarray, "B T"] | Bool[np.ndarray, "B T"], limit: int) -> Packing:
    """Put the rows one behind another, as many as fit `limit` tokens; what stays empty at the end is a document of its own."""
    real = attention_mask.astype(bool)
    within = real.cumsum(-1) - 1
    starts, row, used, W = [], 0, 0, 0
    for length in real.sum(-1).tolist():
        if used and used + length > limit:
            row, used = row + 1, 0
        starts.append((row, used))
        used += length
        W = max(W, used)
    rows, offsets = np.array(starts).T[:, :, None]
    place = np.where(real, rows * W + offsets + within, 0)
    position_ids, document_ids = np.zeros((2, row + 1, W), np.int64)
    position_ids.reshape(-1)[place[real]] = within[real]
    document_ids.reshape(-1)[:] = len(real)
    document_ids.reshape(-1)[place[real]] = np.broadcast_to(np.arange(len(real))[:, None], real.shape)[real]
    return Packing(place, position_ids, document_ids)


def hidden_states_of_rows(
    model: Any,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None = None,
    read: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "*rows C"]:
    """The hidden states of rows with padding; those at padding mean nothing. With `read`, those at these positions, as rows [N, C].

    On a CPU the padding is taken out first: the rows are packed as documents, so that no multiplication is spent on what does
    not count, and the states are put back to where their tokens were. A GPU is better off with one regular batch.
    """
    if attention_mask is None or bool(attention_mask.all()):
        return model.hidden_states(input_ids, read=read)
    if input_ids.device.type != "cpu":
        return model.hidden_states(input_ids, read=read, **padded_inputs(attention_mask))
    packing = pack_rows(attention_mask.numpy(), model.config.max_position_embeddings)
    real, place = attention_mask.bool(), torch.from_numpy(packing.place)
    packed_ids = torch.zeros(packing.position_ids.shape, dtype=input_ids.dtype)
    packed_ids.view(-1)[place[real]] = input_ids[real]
    packed_read = None
    if read is not None:  # the rows keep their order, and so do their positions
        packed_read = torch.zeros(packing.position_ids.shape, dtype=torch.bool)
        packed_read.view(-1)[place[real & read]] = True
    hidden = model.hidden_states(
        packed_ids,
        position_ids=torch.from_numpy(packing.position_ids),
        document_ids=torch.from_numpy(packing.document_ids),
        read=packed_read,
    )
    if read is not None:
        return hidden
    return hidden.flatten(0, 1).index_select(0, place.flatten()).view(*place.shape, -1)
