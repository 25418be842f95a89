"""How the work of a model is cut for several threads (autograd/parallel.py). Only here; the formulas see one shard.

A loss is computed over shards of the batch's rows, or of the documents of its packed rows, and is the sum of the shards' losses,
each weighted by its share of the targets. Padded rows are packed into lines first (packing.py), which the threads share out.

Levels 1 and 2 need none of this: torch's kernels use all cores by themselves.

    python -c "import numpy as np; from v3_numpy_deep.models.sharding import *; print(cut_documents(np.array([0, 0, 1, 1, 1, 2]), 2))"
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from v3_numpy_deep.autograd import Array, Module, Tensor
from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.autograd.parallel import available_threads, in_threads, shards
from v3_numpy_deep.models.blocks.cross_entropy import IGNORE_INDEX


def draws_dropout(model: Module) -> bool:
    """Whether a forward pass would drop anything now."""
    c = model.config
    own = model.training and max(c.embd_pdrop, c.attention_dropout, c.resid_pdrop) > 0
    return own or any(getattr(module, "draws_masks", False) for module in model.modules())


def threads_for(model: Module) -> int:
    """One for the plain formulas, and where dropout masks are drawn one after the other; else what the processor offers."""
    return 1 if model.kernels == "plain" or draws_dropout(model) else available_threads()


def lines_in_threads(model: Module, function: Callable[[Any], Tensor], lines: Sequence[Any]) -> Tensor:
    """The rows of `function(line)` of all lines, behind one another."""

    def of_part(part: slice) -> Tensor:
        return ops.concatenate([function(line) for line in lines[part]])

    parts = shards(len(lines), threads_for(model))
    return of_part(parts[0]) if len(parts) == 1 else in_threads(of_part, parts, list(model.parameters()))


def in_shards(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make of a method `loss`, the mean over the targets of a batch, one that computes it in several threads."""

    @functools.wraps(loss)
    def sharded(
        model: Any,
        input_ids: Int[Array, "B T"],
        labels: Int[Array, "B T"],
        position_ids: Int[Array, "#B T"] | None = None,
        packing: Any = None,
    ) -> Tensor:
        B, T = input_ids.shape
        threads = threads_for(model)
        parts = [(rows, slice(0, T)) for rows in shards(B, threads)]
        if packing is not None and threads > B:
            parts = [
                (slice(row, row + 1), columns)
                for row in range(B)
                for columns in cut_documents(packing.document_ids[row], threads // B)
            ]
        parts = [part for part in parts if (labels[part] != IGNORE_INDEX).any()]  # one of padding has no loss
        if len(parts) <= 1:
            return loss(model, input_ids, labels, position_ids, packing)
        position_ids = np.broadcast_to(np.arange(T) if position_ids is None else position_ids, (B, T))
        counted = max(1, int((labels != IGNORE_INDEX).sum()))

        def weighted_loss(part: tuple[slice, slice]) -> Tensor:
            targets = labels[part]
            share = int((targets != IGNORE_INDEX).sum()) / counted
            documents = None if packing is None else packing[part]
            return loss(model, input_ids[part], targets, position_ids[part], documents).reshape(1) * share

        return in_threads(weighted_loss, parts, list(model.parameters())).sum()

    return sharded


def cut_documents(document_ids: Int[Array, "T"], parts: int) -> list[slice]:
    """A packed row in at most `parts` parts of about the same length, cut only where a document ends."""
    T = len(document_ids)
    ends = np.append(np.flatnonzero(np.diff(document_ids)) + 1, T)
    nearest = {int(ends[np.abs(ends - T * part / parts).argmin()]) for part in range(1, parts)}
    return [slice(start, end) for start, end in itertools.pairwise(sorted({0, *nearest, T}))]
