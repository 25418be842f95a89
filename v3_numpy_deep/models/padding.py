"""Rows of different lengths in one batch: positions, attention and the last real token under padding on either side.

A batch for training is padded on the right, one for generation on the left, and a rollout on both. Three things then go
wrong without an error message: absolute positions start at the padding, tokens look at padding, and "the last token" of
a row is padding. All three are answered here, from the attention mask, which is 1 where a token counts. The ids are never
asked: a real token may well have the id of the padding (many models pad with the token that ends a text).

Level 1: transformers derives the same from `attention_mask` and `pad_token_id`. Level 2: the same over torch.

    python -c "import numpy as np; from v3_numpy_deep.models.padding import *; print(last_positions(np.array([[0, 1, 1], [1, 1, 0]])))"
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from v3_numpy_deep.autograd import Array, Tensor, record


def positions_of(attention_mask: Int[Array, "B T"] | Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """0, 1, 2, … along the real tokens of each row; padding gets a position that exists, and that nobody reads."""
    return (attention_mask.astype(np.int64).cumsum(-1) - 1).clip(min=0)


def last_positions(attention_mask: Int[Array, "B T"] | Bool[Array, "B T"]) -> Int[Array, "B"]:
    """Index of the last real token of each row, whichever side the padding is on."""
    assert attention_mask.any(-1).all(), "a row of nothing but padding has no last token"
    T = attention_mask.shape[-1]
    return (attention_mask.astype(np.int64) * np.arange(T)).argmax(-1)


def padded_inputs(
    attention_mask: Int[Array, "B T"] | Bool[Array, "B T"] | None,
) -> dict[str, Any]:
    """What `Transformer.hidden_states` must be told of the padding: nothing at all, where it is only on the right.

    Attention is causal, so no real token sees what comes after it; and without a mask the faster kernels may be used.
    """
    if attention_mask is None:
        return {}
    real = attention_mask.astype(bool)
    if (real[:, 1:] <= real[:, :-1]).all():
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
    input_ids: Int[Array, "B T"],
    attention_mask: Int[Array, "B T"] | Bool[Array, "B T"] | None = None,
    read: Bool[Array, "B T"] | None = None,
) -> Float[Tensor, "*rows C"]:
    """The hidden states of rows with padding; those at padding mean nothing. With `read`, those at these positions, as rows [N, C].

    The padding is taken out first: the rows are packed as documents, so that no multiplication is spent on what does not
    count, and the states are put back to where their tokens were.
    """
    if attention_mask is None or attention_mask.all():
        return model.hidden_states(input_ids, read=read)
    packing = pack_rows(attention_mask, model.config.max_position_embeddings)
    real, place = attention_mask.astype(bool), packing.place
    packed_ids = np.zeros(packing.position_ids.shape, input_ids.dtype)
    packed_ids.reshape(-1)[place[real]] = input_ids[real]
    packed_read = None
    if read is not None:  # the rows keep their order, and so do their positions
        packed_read = np.zeros(packing.position_ids.shape, bool)
        packed_read.reshape(-1)[place[real & read]] = True
    hidden = model.hidden_states(
        packed_ids,
        position_ids=packing.position_ids,
        document_ids=packing.document_ids,
        read=packed_read,
    )
    if read is not None:
        return hidden
    return _put_back(hidden, place, real)


def _put_back(hidden: Tensor, place: Array, real: Array) -> Tensor:
    """Row `place` of all packed rows for each token. A real token is read once, so its gradient is an assignment, not a sum."""
    shape = hidden.shape

    def derivative(g: Array) -> tuple[Array]:
        d_hidden = np.zeros(shape, g.dtype)
        d_hidden.reshape(-1, shape[-1])[place[real]] = g[real]
        return (d_hidden,)

    return record(hidden.data.reshape(-1, shape[-1])[place], (hidden,), derivative)
