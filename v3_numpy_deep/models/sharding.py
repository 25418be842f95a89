"""How a batch is cut for several threads (autograd/parallel.py). Only here: the functions marked with one of two decorators see a part.

`loss_in_threads`: a loss is the sum of the losses of parts of the batch, each weighted by its share of the targets.
`rows_in_threads`: what is computed for each row of a batch is computed for parts of the rows and put together again.

Levels 1 and 2 need none of this: torch's kernels use all cores by themselves.

    uv run python -c "import numpy as np; from v3_numpy_deep.models.sharding import *; print(cut_documents(np.array([0, 0, 1, 1, 1, 2]), 2))"
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from jaxtyping import Int

from v3_numpy_deep.autograd import Array, Tensor
from v3_numpy_deep.autograd.parallel import available_threads, in_threads, shards
from v3_numpy_deep.models.blocks.cross_entropy import IGNORE_INDEX

F = TypeVar("F", bound=Callable[..., Tensor])


def draws_dropout(model: Any) -> bool:
    """Whether a forward pass would drop anything now."""
    c = model.config
    own = model.training and max(c.embd_pdrop, c.attention_dropout, c.resid_pdrop) > 0
    return own or any(getattr(module, "draws_masks", False) for module in model.modules())


def threads_for(model: Any) -> int:
    """What the processor offers; one for the plain formulas, and where dropout masks are drawn one after the other.

    One, too, where training adds a loss that is no mean over the targets: the balance of experts, what indexers learn.
    """
    whole_batch = model.training and (model.config.num_local_experts > 0 or model.trains_indexers)
    return 1 if model.kernels == "plain" or draws_dropout(model) or whole_batch else available_threads()


def loss_in_threads(loss: F) -> F:
    """Of a method `loss`, the mean over the targets of a batch: shards are rows or, of packed rows, documents."""

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
        if len(parts) == 1:
            return loss(model, input_ids, labels, position_ids, packing)
        position_ids = np.broadcast_to(np.arange(T) if position_ids is None else position_ids, (B, T))
        counted = max(1, int((labels != IGNORE_INDEX).sum()))

        def weighted_loss(part: tuple[slice, slice]) -> Tensor:
            targets = labels[part]
            share = int((targets != IGNORE_INDEX).sum()) / counted
            documents = None if packing is None else packing[part]
            return loss(model, input_ids[part], targets, position_ids[part], documents).reshape(1) * share

        return in_threads(weighted_loss, parts, list(model.parameters())).sum()

    return cast(F, sharded)


def rows_in_threads(function: F) -> F:
    """Of a function (model, input_ids [B, T], arrays of B rows or other values): one result for each row.

    Rows that begin alike go to the same thread, as far as possible: packing computes their prefix once.
    """

    @functools.wraps(function)
    def sharded(model: Any, input_ids: Int[Array, "B T"], *arguments: Any, **keywords: Any) -> Tensor:
        parts = shards(len(input_ids), threads_for(model))
        if len(parts) == 1:
            return function(model, input_ids, *arguments, **keywords)
        order = np.lexsort(input_ids.T[::-1])  # neighbours begin alike

        def of_rows(part: slice) -> Tensor:
            def take(value: Any) -> Any:
                return value[order[part]] if isinstance(value, np.ndarray) else value

            named = {name: take(value) for name, value in keywords.items()}
            return function(model, take(input_ids), *map(take, arguments), **named)

        return in_threads(of_rows, parts, list(model.parameters()))[np.argsort(order)]

    return cast(F, sharded)


def cut_documents(document_ids: Int[Array, "T"], parts: int) -> list[slice]:
    """A packed row in at most `parts` parts of about the same length, cut only where a document ends."""
    T = len(document_ids)
    ends = np.append(np.flatnonzero(np.diff(document_ids)) + 1, T)
    nearest = {int(ends[np.abs(ends - T * part / parts).argmin()]) for part in range(1, parts)}
    return [slice(start, end) for start, end in itertools.pairwise(sorted({0, *nearest, T}))]
