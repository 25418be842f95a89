"""Several texts in one row, and rows of different lengths in one batch.

Pretraining and tuning pack whole documents into a row, one behind another. Each must be read as if it were alone: its tokens see
no other document (`Packing`), and its positions restart at 0 (`position_ids`). Several completions of one prompt go further and
share it: the prompt stands in the row once, and each completion is a branch behind it.

Batches for alignment come padded, on either side. Two things then go wrong without an error message: absolute positions start at the
padding, and "the last token" of a row is padding. Both are derived here from the attention mask, which is 1 where a token counts,
never from the ids: many models pad with the token that ends a text.

Level 1: transformers finds packed documents in `position_ids`, padding in `attention_mask`. Level 2: the same over torch. Which token
goes where is planned in shared_data/training/packing.py.

    uv run python -c "import numpy as np; from v3_numpy_deep.models.packing import *; print(Packing.from_documents(np.array([[0, 0, 1]])).same_text())"
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from shared_data.training.packing import PackedLine, pack_rows
from v3_numpy_deep.autograd import Array, Tensor
from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.models.sharding import draws_dropout


@dataclass(frozen=True)
class Packing:
    """Which text each token of a packed row belongs to.

    document_ids: equal inside a document. branch_ids: 0 in a prefix that several texts share, 1, 2, … in what follows it in each;
    None where documents share nothing.
    """

    document_ids: Int[Array, "B T"]
    branch_ids: Int[Array, "B T"] | None = None

    @classmethod
    def from_documents(cls, document_ids: Int[Array, "B T"]) -> "Packing":
        """Documents that share nothing."""
        return cls(document_ids)

    def __getitem__(self, part: tuple[slice, slice]) -> "Packing":
        """Some rows and columns; the columns must be of whole documents."""
        return Packing(self.document_ids[part], None if self.branch_ids is None else self.branch_ids[part])

    def same_text(self, queries: slice = slice(None)) -> Bool[Array, "B t T"]:
        """Whether the key (last axis) is part of the text that the query continues, seen from these queries."""
        same = self.document_ids[:, queries, None] == self.document_ids[:, None]
        if self.branch_ids is not None:  # in the shared prefix, or in the query's branch
            keys = self.branch_ids[:, None]
            same &= (keys == 0) | (self.branch_ids[:, queries, None] == keys)
        return same

    def positions(self) -> Int[Array, "B T"]:
        """0, 1, 2, … along each text. A branch goes on from the end of its document's prefix."""
        starts = _changes(self.document_ids)
        begin = _latest(starts)
        if self.branch_ids is not None:
            own = self.branch_ids > 0
            turns = starts | _changes(self.branch_ids)
            forks = turns & own & (starts | ~np.roll(own, 1, axis=-1))
            begin = np.where(own, _latest(turns) - (_latest(forks) - begin), begin)
        return np.arange(begin.shape[-1]) - begin


def _changes(ids: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """Whether a token has another id than the one before it; the first one has."""
    return np.diff(ids, axis=-1, prepend=ids[:, :1] - 1) != 0


def _latest(marks: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Index of the last mark up to each token."""
    return np.maximum.accumulate(marks * np.arange(marks.shape[-1]), axis=-1)


def positions_of(attention_mask: Int[Array, "B T"] | Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """0, 1, 2, … along the real tokens of each row; padding gets a position that exists and does not matter."""
    return (attention_mask.astype(np.int64).cumsum(-1) - 1).clip(min=0)


def last_positions(attention_mask: Int[Array, "B T"] | Bool[Array, "B T"]) -> Int[Array, "B"]:
    """Index of the last real token of each row, whichever side the padding is on."""
    assert attention_mask.any(-1).all(), "a row of nothing but padding has no last token"
    return (attention_mask.astype(np.int64) * np.arange(attention_mask.shape[-1])).argmax(-1)


def packed_hidden_states(
    model: Any,
    input_ids: Int[Array, "B T"],
    attention_mask: Int[Array, "B T"] | Bool[Array, "B T"] | None = None,
    logits_to_keep: Bool[Array, "B T"] | None = None,
) -> Float[Tensor, "*rows C"]:
    """Hidden states of padded rows; those at padding mean nothing. With `logits_to_keep`, at these positions only, as rows [N, C].

    Padding is taken out first and shared prefixes are computed once (unless dropout would treat each copy differently); one
    indexing operation then puts the states where their tokens were, and its derivative adds up what a shared prefix receives.
    """
    rows = pack_rows(
        input_ids,
        np.ones_like(input_ids) if attention_mask is None else attention_mask,
        model.config.max_position_embeddings,
        share_prefixes=not draws_dropout(model),
        logits_to_keep=logits_to_keep,
    )
    if rows is None:
        return model.hidden_states(input_ids, logits_to_keep=logits_to_keep)

    return ops.concatenate([_states_of_line(model, line) for line in rows.lines])[rows.where]


def _states_of_line(model: Any, line: PackedLine) -> Float[Tensor, "n C"]:
    """The model's hidden states of one packed row."""
    packing = Packing(line.document_ids, line.branch_ids)
    hidden = model.hidden_states(
        line.input_ids, line.position_ids, packing, logits_to_keep=line.logits_to_keep
    )
    return hidden.reshape(-1, hidden.shape[-1])
