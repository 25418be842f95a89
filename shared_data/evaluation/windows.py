"""Perplexity and bits per byte of a token sequence: every token predicted exactly once, with a sliding window.

Perplexity is exp(nats / tokens), so it depends on the tokenizer; bits per byte is nats / ln 2 / bytes of the text, so
it does not, and on the story world it has a floor that is known exactly. Sums are over tokens, in float64: the average
of window averages, as in the well-known recipe of transformers' documentation, weighs tokens unequally.

A level's `negative_log_probs(model, input_ids, targets)` computes -ln p of targets [N, T] after input_ids [N, T], 0 where a target
is IGNORE_INDEX. Theory: v2_handwritten/inference/scoring.md.

    score = score_tokens(negative_log_probs, model, tokens, context_length=256, stride=128, batch_size=16, end_of_text_id=0)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Integer

from shared_data.errors import UserError

IGNORE_INDEX = -100  # a target that is not scored: context, or padding

NegativeLogProbs = Callable[[Any, Int[np.ndarray, "N T"], Int[np.ndarray, "N T"]], Float[np.ndarray, "N T"]]


@dataclass(frozen=True)
class Score:
    """What a model needs to predict some tokens: the sum of -ln p over them, and how many they are."""

    nats: float
    tokens: int


@dataclass(frozen=True)
class Window:
    """One forward pass over tokens[begin : end]: the last is only a target, and targets before `scored` are context."""

    begin: int
    end: int
    scored: int


def perplexity(score: Score) -> float:
    """exp of the mean negative log probability: a uniform choice among this many tokens would be as hard."""
    return math.exp(score.nats / score.tokens)


def bits_per_byte(score: Score, byte_count: int) -> float:
    """Bits the model needs for each UTF-8 byte of the text; comparable between tokenizers."""
    return score.nats / math.log(2) / byte_count


def score_tokens(
    negative_log_probs: NegativeLogProbs,
    model: Any,
    tokens: Integer[np.ndarray, " N"],
    context_length: int,
    stride: int,
    batch_size: int,
    end_of_text_id: int | None = None,
    on_scored: Callable[[int], None] | None = None,
) -> Score:
    """Sum of the nats of all tokens, each predicted once from at least `context_length - stride` tokens where there are so many.

    Without `end_of_text_id` the tokens are one stream, whose first token is context only. With it they are documents,
    each closed by that id: a document sees nothing of the others, and is read after one `end_of_text_id`, so that its
    first token and its closing id are both predicted (as in pretraining with document masks).

    `batch_size` is how many windows of full length are scored in one pass; `on_scored` receives the number of tokens each pass scored.
    Raises `UserError` where `stride` would skip tokens, or where there is nothing to predict.
    """
    nats = token_nats(
        negative_log_probs, model, tokens, context_length, stride, batch_size, end_of_text_id, on_scored
    )
    return total(nats)


def total(nats: Float[np.ndarray, " N"]) -> Score:
    """The sum over the tokens that are predicted."""
    predicted = nats[~np.isnan(nats)]
    return Score(float(predicted.sum()), len(predicted))


def token_nats(
    negative_log_probs: NegativeLogProbs,
    model: Any,
    tokens: Integer[np.ndarray, " N"],
    context_length: int,
    stride: int,
    batch_size: int,
    end_of_text_id: int | None = None,
    on_scored: Callable[[int], None] | None = None,
) -> Float[np.ndarray, " N"]:
    """-ln p of each token; NaN for a first token that nothing stands before. See `score_tokens`."""
    if not 1 <= stride <= context_length:
        raise UserError(
            f"a stride of {stride} does not fit a context of {context_length} tokens; choose evaluate.stride from 1 to {context_length}"
        )
    tokens = np.asarray(tokens, dtype=np.int64)
    added = 0
    if end_of_text_id is not None and len(tokens) and tokens[0] != end_of_text_id:
        tokens, added = np.concatenate([[end_of_text_id], tokens]), 1
    if len(tokens) < 2:
        raise UserError("there is no token to predict; evaluate on a longer text")

    starts = [0]
    if end_of_text_id is not None:  # each document begins at the id that closed the one before
        starts = np.flatnonzero(tokens[:-1] == end_of_text_id).tolist()
    ends = [start + 1 for start in starts[1:]] + [len(tokens)]
    windows = [
        window
        for start, end in zip(starts, ends, strict=True)
        for window in plan_windows(start, end, context_length, stride)
    ]

    nats = np.full(len(tokens), np.nan)
    for batch in batch_windows(windows, batch_size * context_length):
        input_ids, targets = _inputs_and_targets(tokens, batch)
        scored = targets != IGNORE_INDEX
        places = np.concatenate([np.arange(window.scored, window.end) for window in batch])
        nats[places] = negative_log_probs(model, input_ids, targets)[scored]
        if on_scored is not None:
            on_scored(len(places))
    return nats[added:]


def plan_windows(start: int, end: int, context_length: int, stride: int) -> list[Window]:
    """Windows over tokens[start : end] that move by `stride`; each token after the first is scored in exactly one."""
    windows, scored = [], start + 1
    for begin in range(start, end, stride):
        if scored >= end:
            break
        stop = min(begin + context_length + 1, end)  # one more than the context: the last input's target
        windows.append(Window(begin, stop, scored))
        scored = stop
    return windows


def batch_windows(windows: list[Window], max_tokens: int) -> list[list[Window]]:
    """Batches of windows of similar length, so that padding is rare; about `max_tokens` inputs each, longest first."""
    ordered = sorted(windows, key=lambda window: window.begin - window.end)  # stable, so deterministic
    batches, position = [], 0
    while position < len(ordered):
        longest = ordered[position].end - ordered[position].begin - 1
        rows = max(1, max_tokens // longest)
        batches.append(ordered[position : position + rows])
        position += rows
    return batches


def _inputs_and_targets(
    tokens: Int[np.ndarray, " n"], batch: list[Window]
) -> tuple[Int[np.ndarray, "N T"], Int[np.ndarray, "N T"]]:
    """The windows as rows. Padding stands on the right, where causal attention never sees it."""
    T = batch[0].end - batch[0].begin - 1
    input_ids = np.zeros((len(batch), T), dtype=np.int64)
    targets = np.full_like(input_ids, IGNORE_INDEX)
    for row, window in enumerate(batch):
        input_ids[row, : window.end - window.begin - 1] = tokens[window.begin : window.end - 1]
        first = window.scored - 1 - window.begin  # the input before a target predicts it
        targets[row, first : window.end - window.begin - 1] = tokens[window.scored : window.end]
    return input_ids, targets
