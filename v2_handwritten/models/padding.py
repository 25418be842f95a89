"""Rows of different lengths in one batch: positions, attention and the last real token under padding on either side.

A batch for training is padded on the right, one for generation on the left, and a rollout on both. Three things then go
wrong without an error message: absolute positions start at the padding, tokens look at padding, and "the last token" of
a row is padding. All three are answered here, from the attention mask, which is 1 where a token counts. The ids are never
asked: a real token may well have the id of the padding (many models pad with the token that ends a text).

Level 1: transformers derives the same from `attention_mask` and `pad_token_id`. Level 3: the same over NumPy.

    python -c "import torch; from v2_handwritten.models.padding import *; print(last_positions(torch.tensor([[0, 1, 1], [1, 1, 0]])))"
"""

import itertools
from collections.abc import Sequence
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
    """Where the real tokens of B rows went when padding was taken out: N slots, cut into lines that pass through the model by turns.

    Rows that begin alike are one document: what they have in common stands there once, its trunk; the rest of each is a branch.
    """

    place: Int64[np.ndarray, "B T"]  # slot of each real token; 0 at padding
    position_ids: Int64[np.ndarray, " N"]
    document_ids: Int64[np.ndarray, " N"]
    branch_ids: Int64[np.ndarray, " N"] | None  # 0 in a trunk; None where nothing is shared
    lines: list[slice]  # of whole documents


def pack_rows(
    input_ids: Int[np.ndarray, "B T"],
    attention_mask: Int[np.ndarray, "B T"] | Bool[np.ndarray, "B T"],
    limit: int,
    share: bool = True,
) -> Packing:
    """Put the rows one behind another, in as few lines of at most `limit` tokens as will do, all about equally long.

    share: keep only once what rows have in common at their beginning, such as the prompt of several replies.
    """
    real = attention_mask.astype(bool)
    texts = [ids[mask] for ids, mask in zip(input_ids, real, strict=True)]
    documents = _documents(texts, limit) if share else [(len(text), [row]) for row, text in enumerate(texts)]
    lengths = [trunk + sum(len(texts[row]) - trunk for row in rows) for trunk, rows in documents]
    N = sum(lengths)
    place = np.zeros(real.shape, np.int64)
    position_ids, document_ids, branch_ids = np.zeros((3, N), np.int64)
    begin = 0
    for document, (trunk, rows) in enumerate(documents):
        end = begin + trunk
        for branch, row in enumerate(rows, start=1):
            own = len(texts[row]) - trunk
            slots = np.r_[begin : begin + trunk, end : end + own]
            place[row, real[row]] = slots
            position_ids[slots] = np.arange(len(slots))
            document_ids[slots] = document
            branch_ids[slots[trunk:]] = branch
            end += own
        begin = end
    shared = len(documents) < len(texts)
    return Packing(place, position_ids, document_ids, branch_ids if shared else None, _lines(lengths, limit))


def _lines(lengths: Sequence[int], limit: int) -> list[slice]:
    """Documents of these lengths in lines: one ends where its share of all tokens is reached, or the limit would be passed."""
    N = sum(lengths)
    fair = N / -(-N // limit)
    ends = [0]
    position = 0
    for length in lengths:
        used = position - ends[-1]
        if used and (used >= fair or used + length > limit):
            ends.append(position)
        position += length
    return [slice(*line) for line in itertools.pairwise([*ends, N])]


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
    input_ids: Int[Tensor, "B T"],
    attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None = None,
    read: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "*rows C"]:
    """The hidden states of rows with padding; those at padding mean nothing. With `read`, those at these positions, as rows [N, C].

    On a CPU padding is taken out first: the rows are packed as documents, so that no multiplication is spent on what does not
    count; nor on doing twice what rows have in common at their beginning, unless dropout would treat each differently. The states
    are then put back to where their tokens were. A GPU is better off with one regular batch.
    """
    if input_ids.device.type != "cpu":
        padding = padded_inputs(attention_mask)
        return model.hidden_states(input_ids, read=read, **padding)
    real = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
    limit = model.config.max_position_embeddings
    packing = pack_rows(input_ids.numpy(), real.numpy(), limit, share=not _drops(model))
    if packing.branch_ids is None and bool(real.all()):
        return model.hidden_states(input_ids, read=read)
    place = torch.from_numpy(packing.place)
    packed_ids = torch.zeros(len(packing.position_ids), dtype=input_ids.dtype)
    packed_ids[place[real]] = input_ids[real]
    slots = place[real if read is None else real & read]
    packed_read = None
    if read is not None:
        packed_read = torch.zeros(len(packed_ids), dtype=torch.bool)
        packed_read[slots] = True
    position_ids, document_ids, branch_ids = (
        None if ids is None else torch.from_numpy(ids)
        for ids in (packing.position_ids, packing.document_ids, packing.branch_ids)
    )

    def states_of(line: slice) -> Tensor:
        inputs = (packed_ids, position_ids, document_ids, branch_ids, packed_read)
        ids, positions, documents, branches, reads = (x if x is None else x[None, line] for x in inputs)
        states = model.hidden_states(
            ids, position_ids=positions, document_ids=documents, branch_ids=branches, read=reads
        )
        return states.view(-1, states.shape[-1])

    hidden = torch.cat([states_of(line) for line in packing.lines])
    if packed_read is None:
        return hidden.index_select(0, place.flatten()).view(*place.shape, -1)
    return hidden.index_select(0, packed_read.cumsum(0)[slots] - 1)


def _drops(model: Any) -> bool:
    """Whether a forward pass would drop anything now."""
    c = model.config
    own = model.training and max(c.embd_pdrop, c.attention_dropout, c.resid_pdrop) > 0
    return own or any(getattr(module, "draws_masks", False) for module in model.modules())
