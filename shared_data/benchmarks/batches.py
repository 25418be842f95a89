"""Which tokens go through the model together, and which of its logits are needed.

Requests are sorted by length, longest first, so that rows of a batch are about equally long and a batch that does not fit into memory
fails at once. Three things save work and change no result: choices of one question stay neighbours, so that a level can compute their
question once; requests with equal inputs share a row (the letters A to D after one question are one forward pass); logits are computed
only where a continuation is predicted.

    batches = list(plan_batches(requests, batch_size=16, max_length=1024))
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from shared_data.benchmarks.token_requests import TokenRequest, truncated
from shared_data.errors import UserError


class LogLikelihood(NamedTuple):
    """ln p of a continuation in nats, and whether greedy decoding would write it."""

    sum: float
    is_greedy: bool


@dataclass(frozen=True)
class Batch:
    """B rows of inputs, padded on the right; N positions are scored (`logits_to_keep`), row by row.

    M tokens are looked up there: `targets[m]` is predicted at the scored position `rows[m]` and belongs to request `owners[m]`.
    """

    input_ids: Int64[np.ndarray, "B T"]
    attention_mask: Bool[np.ndarray, "B T"]
    logits_to_keep: Bool[np.ndarray, "B T"]
    rows: Int64[np.ndarray, " M"]
    targets: Int64[np.ndarray, " M"]
    owners: Int64[np.ndarray, " M"]


TokenScores = tuple[Float[np.ndarray, " M"], Bool[np.ndarray, " M"]]


def plan_batches(requests: Sequence[TokenRequest], batch_size: int, max_length: int) -> Iterator[Batch]:
    """Batches of at most `batch_size` rows. Raises `UserError` for a continuation that is longer than the model's positions."""
    by_inputs: dict[tuple[int, ...], list[int]] = defaultdict(list)
    by_context: dict[tuple[int, ...], set[tuple[int, ...]]] = defaultdict(set)
    for index, request in enumerate(requests):
        if len(request.continuation) > max_length:
            raise UserError(
                f"a continuation of {len(request.continuation)} tokens is longer than the model's {max_length} positions; leave the item out"
            )
        inputs = tuple(truncated(request, max_length))
        by_inputs[inputs].append(index)
        by_context[tuple(request.context)].add(inputs)
    questions = [sorted(rows, key=_longest_first) for rows in by_context.values()]
    questions.sort(key=lambda rows: _longest_first(rows[0]))
    order = list(dict.fromkeys(row for rows in questions for row in rows))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield _batch(rows, [by_inputs[row] for row in rows], requests)


def _longest_first(row: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    return -len(row), row


def _batch(
    rows: Sequence[tuple[int, ...]], owners_of: Sequence[list[int]], requests: Sequence[TokenRequest]
) -> Batch:
    """One batch of these inputs, each with the requests that it answers."""
    shape = len(rows), max(map(len, rows))
    input_ids, mask, keep = np.zeros(shape, np.int64), np.zeros(shape, bool), np.zeros(shape, bool)
    looked_up: list[tuple[int, int, int]] = []
    scored = 0
    for row, (ids, owners) in enumerate(zip(rows, owners_of, strict=True)):
        input_ids[row, : len(ids)], mask[row, : len(ids)] = ids, True
        count = max(len(requests[owner].continuation) for owner in owners)
        keep[row, len(ids) - count : len(ids)] = True
        scored += count
        for owner in owners:
            continuation = requests[owner].continuation
            first = scored - len(continuation)
            looked_up += [(first + n, target, owner) for n, target in enumerate(continuation)]
    places, targets, owner_ids = np.array(looked_up, np.int64).T
    return Batch(input_ids, mask, keep, places, targets, owner_ids)


def sum_by_request(
    score_tokens: Callable[[Batch], TokenScores], batches: Iterable[Batch], count: int
) -> list[LogLikelihood]:
    """The log-likelihoods of `count` requests from those of their tokens; greedy where every token is."""
    sums, greedy = np.zeros(count), np.ones(count, bool)
    for batch in batches:
        log_probs, is_greedy = score_tokens(batch)
        sums += np.bincount(batch.owners, log_probs, minlength=count)
        greedy[batch.owners[~is_greedy]] = False
    return [LogLikelihood(*pair) for pair in zip(sums.tolist(), greedy.tolist(), strict=True)]
