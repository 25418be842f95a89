"""Several texts in one row, and rows of different lengths in one batch.

Pretraining and tuning pack whole documents into a row, one behind another. Each must be read as if it were alone: its tokens see
no other document (`Packing`), and its positions restart at 0 (`position_ids`). Several completions of one prompt go further and
share it: the prompt stands in the row once, and each completion is a branch behind it.

Batches for alignment come padded, on either side. Two things then go wrong without an error message: absolute positions start at the
padding, and "the last token" of a row is padding. Both are derived here from the attention mask, which is 1 where a token counts,
never from the ids: many models pad with the token that ends a text.

Level 1: transformers finds packed documents in `position_ids`, padding in `attention_mask`. Level 3: the same over NumPy. Which token
goes where is planned in shared_data/training/packing.py.

    uv run python -c "import torch; from v2_handwritten.models.packing import *; print(Packing.from_documents(torch.tensor([[0, 0, 1]])).same_text())"
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shared_data.training.packing import PackedLine, pack_rows


@dataclass(frozen=True)
class Packing:
    """Which text each token of a packed row belongs to.

    document_ids: equal inside a document. branch_ids: 0 in a prefix that several texts share, 1, 2, … in what follows it in each;
    None where documents share nothing.
    """

    document_ids: Int[Tensor, "B T"]
    branch_ids: Int[Tensor, "B T"] | None = None

    @classmethod
    def from_documents(cls, document_ids: Int[Tensor, "B T"]) -> "Packing":
        """Documents that share nothing."""
        return cls(document_ids)

    def same_text(self, queries: slice = slice(None)) -> Bool[Tensor, "B t T"]:
        """Whether the key (last axis) is part of the text that the query continues, seen from these queries."""
        same = self.document_ids[:, queries, None] == self.document_ids.unsqueeze(-2)
        if self.branch_ids is not None:  # in the shared prefix, or in the query's branch
            keys = self.branch_ids.unsqueeze(-2)
            same &= (keys == 0) | (self.branch_ids[:, queries, None] == keys)
        return same

    def positions(self) -> Int[Tensor, "B T"]:
        """0, 1, 2, … along each text. A branch goes on from the end of its document's prefix."""
        starts = _changes(self.document_ids)
        begin = _latest(starts)
        if self.branch_ids is not None:
            turns = starts | _changes(self.branch_ids)
            forks = turns & (self.branch_ids > 0) & (starts | (self.branch_ids.roll(1, -1) == 0))
            in_branch = _latest(turns) - (_latest(forks) - begin)
            begin = torch.where(self.branch_ids > 0, in_branch, begin)
        return torch.arange(begin.shape[-1], device=begin.device) - begin


def _changes(ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Whether a token has another id than the one before it; the first one has."""
    return torch.cat([torch.ones_like(ids[:, :1], dtype=torch.bool), ids.diff(dim=-1) != 0], dim=-1)


def _latest(marks: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Index of the last mark up to each token."""
    return (marks * torch.arange(marks.shape[-1], device=marks.device)).cummax(-1).values


def positions_of(attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """0, 1, 2, … along the real tokens of each row; padding gets a position that exists and does not matter."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def last_positions(attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"]) -> Int[Tensor, "B"]:
    """Index of the last real token of each row, whichever side the padding is on."""
    assert bool(attention_mask.any(-1).all()), "a row of nothing but padding has no last token"
    T = attention_mask.shape[-1]
    return (attention_mask.long() * torch.arange(T, device=attention_mask.device)).argmax(-1)


def packed_hidden_states(
    model: Any,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None = None,
    logits_to_keep: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "*rows C"]:
    """Hidden states of padded rows; those at padding mean nothing. With `logits_to_keep`, at these positions only, as rows [N, C].

    On a CPU padding is taken out first and shared prefixes are computed once (unless dropout would treat each copy differently); the
    states are then put back to where their tokens were. A GPU is better off with one regular batch.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if input_ids.device.type != "cpu":
        real = attention_mask.bool()
        if bool((real[:, 1:] <= real[:, :-1]).all()):  # causal attention never looks at padding on the right
            return model.hidden_states(input_ids, logits_to_keep=logits_to_keep)
        positions = positions_of(attention_mask)
        return model.hidden_states(
            input_ids, positions, attention_mask=attention_mask, logits_to_keep=logits_to_keep
        )
    rows = pack_rows(
        input_ids.numpy(),
        attention_mask.numpy(),
        model.config.max_position_embeddings,
        share_prefixes=not _draws_dropout(model),
        logits_to_keep=None if logits_to_keep is None else logits_to_keep.numpy(),
    )
    if rows is None:
        return model.hidden_states(input_ids, logits_to_keep=logits_to_keep)
    hidden = torch.cat([_states_of_line(model, line) for line in rows.lines])
    where = torch.from_numpy(rows.where)
    return hidden.index_select(0, where.flatten()).view(*where.shape, -1)


def _states_of_line(model: Any, line: PackedLine) -> Float[Tensor, "n C"]:
    """The model's hidden states of one packed row."""
    document_ids = torch.from_numpy(line.document_ids)
    branch_ids, keep = (
        None if x is None else torch.from_numpy(x) for x in (line.branch_ids, line.logits_to_keep)
    )
    hidden = model.hidden_states(
        torch.from_numpy(line.input_ids),
        torch.from_numpy(line.position_ids),
        Packing(document_ids, branch_ids),
        logits_to_keep=keep,
    )
    return hidden.flatten(end_dim=-2)


def _draws_dropout(model: Any) -> bool:
    """Whether a forward pass would drop anything now."""
    c = model.config
    own = model.training and max(c.embd_pdrop, c.attention_dropout, c.resid_pdrop) > 0
    return own or any(getattr(module, "draws_masks", False) for module in model.modules())
