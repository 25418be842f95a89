"""Perplexity and bits per byte of a token sequence, with transformers' sliding-window recipe done right.

The recipe (https://huggingface.co/docs/transformers/perplexity) averages the mean losses of the windows, although they score
different numbers of tokens, and loses the one token at each window's beginning. Here the sum over tokens is divided by
their number, and the labels are shifted before a window is cut, so that each token is predicted exactly once.

Levels 2 and 3 write the cross-entropy by hand and batch windows by length. Theory: v2_handwritten/inference/scoring.md.

    score = score_tokens(model, tokens, context_length=256, stride=128, batch_size=16, end_of_text_id=0); perplexity(score)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Integer
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from shared_data.errors import UserError
from v1_quick.models.transformer import Transformer


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


@torch.inference_mode()
def score_tokens(
    model: Transformer,
    tokens: Integer[np.ndarray, " N"],
    context_length: int,
    stride: int,
    batch_size: int,
    end_of_text_id: int | None = None,
    on_scored: Callable[[int], None] | None = None,
) -> Score:
    """Sum of the nats of all tokens, each predicted once from at least `context_length - stride` tokens where there are so many.

    Without `end_of_text_id` the tokens are one stream; with it, documents that are closed by that id, and each is read after one
    such id and sees nothing of the others. Raises `UserError` where `stride` would skip tokens, or nothing can be predicted.
    """
    if not 1 <= stride <= context_length:
        raise UserError(
            f"a stride of {stride} does not fit a context of {context_length} tokens; choose evaluate.stride from 1 to {context_length}"
        )
    stream = torch.from_numpy(np.asarray(tokens, dtype=np.int64))
    if end_of_text_id is not None and len(stream) and stream[0] != end_of_text_id:
        stream = torch.cat([torch.tensor([end_of_text_id]), stream])
    if len(stream) < 2:
        raise UserError("there is no token to predict; evaluate on a longer text")
    starts = [0] if end_of_text_id is None else (stream[:-1] == end_of_text_id).nonzero().flatten().tolist()
    windows = [
        window
        for start, following in pairwise([*starts, len(stream) - 1])
        for window in plan_windows(start, following + 1, context_length, stride)
    ]
    windows.sort(
        key=lambda window: window.begin - window.end
    )  # windows of similar length need little padding

    device = next(model.parameters()).device
    was_training = model.training
    model.eval()  # no dropout
    nats = 0.0
    for position in range(0, len(windows), batch_size):
        batch = windows[position : position + batch_size]
        inputs = [stream[window.begin : window.end - 1] for window in batch]
        labels = [stream[window.begin + 1 : window.end].clone() for window in batch]
        for window, label in zip(batch, labels, strict=True):
            label[: window.scored - window.begin - 1] = -100  # context, scored in an earlier window
        input_ids = pad_sequence(inputs, batch_first=True).to(
            device
        )  # right padding: causal attention never sees it
        targets = pad_sequence(labels, batch_first=True, padding_value=-100).to(device)
        losses = cross_entropy(model(input_ids).float().flatten(0, 1), targets.flatten(), reduction="none")
        nats += losses.double().sum().item()
        if on_scored is not None:
            on_scored(sum(window.end - window.scored for window in batch))
    model.train(was_training)
    return Score(nats, len(stream) - 1)


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
