"""Rows of different lengths in one batch: positions, attention and the last real token under padding on either side.

A batch for training is padded on the right, one for generation on the left, and a rollout on both. Three things then go
wrong without an error message: absolute positions start at the padding, tokens look at padding, and "the last token" of
a row is padding. All three are answered here, from the attention mask, which is 1 where a token counts. The ids are never
asked: a real token may well have the id of the padding (many models pad with the token that ends a text).

Level 1: transformers derives the same from `attention_mask` and `pad_token_id`. Level 2: the same over torch.

    python -c "import numpy as np; from v3_numpy_deep.models.padding import *; print(last_positions(np.array([[0, 1, 1], [1, 1, 0]])))"
"""

from collections.abc import Sequence
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
    """Where the real tokens of B rows went when padding was taken out: R longer rows of W tokens.

    Rows that begin alike are one document: what they have in common stands there once, its trunk; the rest of each is a branch.
    """

    place: Int64[np.ndarray, "B T"]  # slot of each real token among the R · W; 0 at padding
    position_ids: Int64[np.ndarray, "R W"]
    document_ids: Int64[np.ndarray, "R W"]
    branch_ids: Int64[np.ndarray, "R W"] | None  # 0 in a trunk; None where nothing is shared


def pack_rows(
    input_ids: Int[np.ndarray, "B T"],
    attention_mask: Int[np.ndarray, "B T"] | Bool[np.ndarray, "B T"],
    limit: int,
    share: bool = True,
) -> Packing:
    """Put the rows one behind another, as many as fit `limit` tokens; what stays empty at the end is a document of its own.

    share: keep only once what rows have in common at their beginning, such as the prompt of several replies.
    """
    real = attention_mask.astype(bool)
    texts = [ids[mask] for ids, mask in zip(input_ids, real, strict=True)]
    documents = _documents(texts, limit) if share else [(len(text), [row]) for row, text in enumerate(texts)]
    starts, line, used, W = [], 0, 0, 0
    for trunk, rows in documents:
        length = trunk + sum(len(texts[row]) - trunk for row in rows)
        if used and used + length > limit:
            line, used = line + 1, 0
        starts.append((line, used))
        used += length
        W = max(W, used)
    place = np.zeros(real.shape, np.int64)
    position_ids, document_ids, branch_ids = np.zeros((3, (line + 1) * W), np.int64)
    document_ids[:] = len(documents)
    for document, ((line, start), (trunk, rows)) in enumerate(zip(starts, documents, strict=True)):
        begin = line * W + start
        end = begin + trunk
        for branch, row in enumerate(rows, start=1):
            own = len(texts[row]) - trunk
            slots = np.r_[begin : begin + trunk, end : end + own]
            place[row, real[row]] = slots
            position_ids[slots] = np.arange(len(slots))
            document_ids[slots] = document
            branch_ids[slots[trunk:]] = branch
            end += own
    shared = len(documents) < len(texts)
    return Packing(
        place,
        position_ids.reshape(-1, W),
        document_ids.reshape(-1, W),
        branch_ids.reshape(-1, W) if shared else None,
    )


def _documents(texts: Sequence[Int[np.ndarray, " _"]], limit: int) -> list[tuple[int, list[int]]]:
    """Texts that begin alike, together: the length of what they have in common, and which they are; in the order of the first.

    At least half of each text must be common to all: the trunk is then worth the masks that keep its branches apart.
    """
    documents: list[tuple[int, list[int]]] = []
    for row in sorted(range(len(texts)), key=lambda row: texts[row].tolist()):  # neighbours begin alike
        if documents:
            trunk, rows = documents[-1]
            trunk = min(trunk, _common_length(texts[rows[0]], texts[row]))
            lengths = [len(texts[member]) for member in (*rows, row)]
            if 2 * trunk >= max(lengths) and sum(lengths) - trunk * len(rows) <= limit:
                documents[-1] = (trunk, [*rows, row])
                continue
        documents.append((len(texts[row]), [row]))
    return sorted(((trunk, sorted(rows)) for trunk, rows in documents), key=lambda document: document[1])


def _common_length(a: Int[np.ndarray, " N"], b: Int[np.ndarray, " M"]) -> int:
    """How many tokens two texts have in common at the beginning."""
    length = min(len(a), len(b))
    differ = a[:length] != b[:length]
    return int(differ.argmax()) if differ.any() else length


def hidden_states_of_rows(
    model: Any,
    input_ids: Int[Array, "B T"],
    attention_mask: Int[Array, "B T"] | Bool[Array, "B T"] | None = None,
    read: Bool[Array, "B T"] | None = None,
) -> Float[Tensor, "*rows C"]:
    """The hidden states of rows with padding; those at padding mean nothing. With `read`, those at these positions, as rows [N, C].

    Padding is taken out first: the rows are packed as documents, so that no multiplication is spent on what does not count; nor
    on doing twice what rows have in common at their beginning, unless dropout would treat each differently. The states are then
    put back to where their tokens were.
    """
    real = np.ones_like(input_ids, bool) if attention_mask is None else attention_mask.astype(bool)
    limit = model.config.max_position_embeddings
    packing = pack_rows(input_ids, real, limit, share=not _drops(model))
    if packing.branch_ids is None and real.all():
        return model.hidden_states(input_ids, read=read)
    place = packing.place
    packed_ids = np.zeros(packing.position_ids.shape, input_ids.dtype)
    packed_ids.reshape(-1)[place[real]] = input_ids[real]
    inputs = {
        "position_ids": packing.position_ids,
        "document_ids": packing.document_ids,
        "branch_ids": packing.branch_ids,
    }
    if read is None:
        hidden = model.hidden_states(packed_ids, **inputs)
        return _put_back(hidden, place, real)
    slots = place[real & read]
    packed_read = np.zeros(packed_ids.size, bool)
    packed_read[slots] = True
    hidden = model.hidden_states(packed_ids, read=packed_read.reshape(packed_ids.shape), **inputs)
    return hidden[packed_read.cumsum()[slots] - 1]


def _put_back(hidden: Tensor, place: Array, real: Array) -> Tensor:
    """Row `place` of all packed rows for each token; ∂ of a packed row is the sum over the tokens that are there, padding left out."""
    shape = hidden.shape

    def derivative(g: Array) -> tuple[Array]:
        d_hidden = np.zeros(shape, g.dtype)
        np.add.at(d_hidden.reshape(-1, shape[-1]), place[real], g[real])
        return (d_hidden,)

    return record(hidden.data.reshape(-1, shape[-1])[place], (hidden,), derivative)


def _put(values: Float[Tensor, " N"], places: Bool[Array, "B T"]) -> Float[Tensor, "B T"]:
    """The values at the places that are marked, in their order, and 0 elsewhere;  each gets the g of its place"""
    y = np.zeros(places.shape, values.dtype)
    y[places] = values.data
    return record(y, (values,), lambda g: (g[places],))


def _drops(model: Any) -> bool:
    """Whether a forward pass would drop anything now."""
    c = model.config
    own = model.training and max(c.embd_pdrop, c.attention_dropout, c.resid_pdrop) > 0
    return own or any(getattr(module, "draws_masks", False) for module in model.modules())
