"""Penalties: what was written before changes the logits of what comes next.

They come before the filters, in greedy decoding and beam search, too, and in transformers' order: logit bias, repetition penalty
(Keskar et al. 2019, section 4.1), n-grams that may not come twice. Presence and frequency penalty, which transformers has not, are OpenAI's
and stand after the repetition penalty, as in vLLM: they count generated tokens only, the other two read the prompt as well.

Level 1 calls transformers' processors; level 3 is the same in NumPy. Theory: sampling.md.

    uv run python -c "import torch; from v2_handwritten.inference.penalties import *; print(penalize_repetition(torch.tensor([[2., -1., 1.]]), [[0, 1]], 2.0))"
"""

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from shared_data.errors import UserError
from shared_data.inference.sampling_parameters import NO_TOKEN_LEFT, NOT_FINITE, SamplingParameters


def apply_penalties(
    logits: Float[Tensor, "B V"],
    sequences: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    sampling: SamplingParameters,
) -> Float[Tensor, "B V"]:
    """The logits (in beam search log-probabilities) after all penalties. `sequences`: prompt and new ids of each row, without padding."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
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


def check_allowed(logits: Float[Tensor, "B V"], running: Collection[int]) -> Float[Tensor, "B V"]:
    """The logits; a row that has stopped and has no token left gets zeros, so that it can go on beside the others.

    Raises `UserError` where one of the `running` rows has no token left.
    """
    stuck = logits.amax(dim=-1) == -torch.inf
    if stuck[list(running)].any():
        raise UserError(NO_TOKEN_LEFT)
    return logits.masked_fill(stuck[:, None], 0)


def check_finite(logits: Float[Tensor, "B V"]) -> None:
    """Raise `UserError` for logits that are NaN or infinite: no token could be chosen."""
    if not math.isfinite(logits.max().item()):
        raise UserError(NOT_FINITE)


def add_bias(logits: Float[Tensor, "B V"], logit_bias: Mapping[int, float]) -> Float[Tensor, "B V"]:
    """z_i + b_i: a bias of ln 2 doubles a token's odds, -inf forbids it."""
    bias = torch.zeros_like(logits[0])
    bias[list(logit_bias)] = torch.tensor(list(logit_bias.values())).to(bias)
    return logits + bias


def penalize_repetition(
    logits: Float[Tensor, "B V"], sequences: Sequence[Sequence[int]], penalty: float
) -> Float[Tensor, "B V"]:
    """z / penalty of a token that came before, and z * penalty where z is negative: both make it less probable."""
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for row, ids in zip(seen, sequences, strict=True):
        row[list(ids)] = True
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def penalize_counts(
    logits: Float[Tensor, "B V"], new_ids: Sequence[Sequence[int]], presence: float, frequency: float
) -> Float[Tensor, "B V"]:
    """z - presence * (c > 0) - frequency * c, with c how often the token was generated."""
    counts = torch.zeros_like(logits)
    for row, ids in zip(counts, new_ids, strict=True):
        row.copy_(torch.tensor(ids, dtype=torch.long).bincount(minlength=logits.shape[-1]))
    return logits - presence * (counts > 0) - frequency * counts


def forbid_repeated_ngrams(
    logits: Float[Tensor, "B V"], sequences: Sequence[Sequence[int]], size: int
) -> Float[Tensor, "B V"]:
    """-inf for a token that would end n tokens which stand in the sequence already."""
    forbidden = torch.zeros_like(logits, dtype=torch.bool)
    for row, sequence in zip(forbidden, sequences, strict=True):
        if len(sequence) < size:
            continue
        ids = torch.tensor(sequence)
        ngrams = ids.unfold(0, size, 1)  # [N, size]
        begun = ids[
            len(ids) - size + 1 :
        ]  # the last n - 1 tokens: the next one ends an n-gram that begins with them
        row[ngrams[(ngrams[:, :-1] == begun).all(dim=1), -1]] = True
    return logits.masked_fill(forbidden, -torch.inf)
