"""Penalties: what was written before changes the logits of what comes next.

They come before the filters, in greedy decoding and beam search, too, and in transformers' order: logit bias, repetition penalty
(Keskar et al. 2019, section 4.1), n-grams that may not come twice. Presence and frequency penalty, which transformers has not, are OpenAI's
and stand after the repetition penalty, as in vLLM: they count generated tokens only, the other two read the prompt as well.

Level 1 calls transformers' processors; level 2 is the same in torch. Theory: v2_handwritten/inference/sampling.md.

    uv run python -c "import numpy as np; from v3_numpy_deep.inference.penalties import *; print(penalize_repetition(np.array([[2., -1., 1.]]), [[0, 1]], 2.0))"
"""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from shared_data.errors import UserError
from shared_data.inference.sampling_parameters import NO_TOKEN_LEFT, NOT_FINITE, SamplingParameters
from v3_numpy_deep.autograd import Array


def apply_penalties(
    logits: Float[Array, "B V"],
    sequences: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    sampling: SamplingParameters,
) -> Float[Array, "B V"]:
    """The logits (in beam search log-probabilities) after all penalties. `sequences`: prompt and new ids of each row, without padding."""
    if sampling.logit_bias:
        logits = add_bias(logits, sampling.logit_bias)
    if sampling.repetition_penalty != 1:
        logits = penalize_repetition(logits, sequences, sampling.repetition_penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        new_ids = [ids[start:] for ids, start in zip(sequences, prompt_lengths, strict=True)]
        logits = penalize_counts(logits, new_ids, sampling.presence_penalty, sampling.frequency_penalty)
    if sampling.no_repeat_ngram_size:
        logits = forbid_repeated_ngrams(logits, sequences, sampling.no_repeat_ngram_size)
    return logits


def check_allowed(logits: Float[Array, "B V"], running: Collection[int]) -> Float[Array, "B V"]:
    """The logits; a row that has stopped and has no token left gets zeros, so that it can go on beside the others.

    Raises `UserError` where one of the `running` rows has no token left.
    """
    stuck = logits.max(axis=-1) == -np.inf
    if stuck[list(running)].any():
        raise UserError(NO_TOKEN_LEFT)
    return np.where(stuck[:, None], 0, logits)


def check_finite(logits: Float[Array, "B V"]) -> None:
    """Raise `UserError` for logits that are NaN or infinite: no token could be chosen."""
    if not math.isfinite(logits.max().item()):
        raise UserError(NOT_FINITE)


def add_bias(logits: Float[Array, "B V"], logit_bias: Mapping[int, float]) -> Float[Array, "B V"]:
    """z_i + b_i: a bias of ln 2 doubles a token's odds, -inf forbids it."""
    biased = logits.copy()
    biased[:, list(logit_bias)] += np.array(list(logit_bias.values()), logits.dtype)
    return biased


def penalize_repetition(
    logits: Float[Array, "B V"], sequences: Sequence[Sequence[int]], penalty: float
) -> Float[Array, "B V"]:
    """z / penalty of a token that came before, and z * penalty where z is negative: both make it less probable."""
    penalized = logits.copy()
    for row, sequence in zip(penalized, sequences, strict=True):
        ids = np.unique(sequence)  # a token that came twice is penalized once
        row[ids] = np.where(row[ids] < 0, row[ids] * penalty, row[ids] / penalty)
    return penalized


def penalize_counts(
    logits: Float[Array, "B V"], new_ids: Sequence[Sequence[int]], presence: float, frequency: float
) -> Float[Array, "B V"]:
    """z - presence * (c > 0) - frequency * c, with c how often the token was generated."""
    V = logits.shape[-1]
    counts = np.stack([np.bincount(np.array(ids, int), minlength=V) for ids in new_ids]).astype(logits.dtype)
    return logits - presence * (counts > 0).astype(logits.dtype) - frequency * counts


def forbid_repeated_ngrams(
    logits: Float[Array, "B V"], sequences: Sequence[Sequence[int]], size: int
) -> Float[Array, "B V"]:
    """-inf for a token that would end n tokens which stand in the sequence already."""
    allowed = logits.copy()
    for row, sequence in zip(allowed, sequences, strict=True):
        if len(sequence) < size:
            continue
        ids = np.array(sequence)
        ngrams = np.lib.stride_tricks.sliding_window_view(ids, size)  # [N, size]
        begun = ids[
            len(ids) - size + 1 :
        ]  # the last n - 1 tokens: the next one ends an n-gram that begins with them
        row[ngrams[(ngrams[:, :-1] == begun).all(axis=1), -1]] = -np.inf
    return allowed
