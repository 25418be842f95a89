"""Beam search: instead of the most probable next token, look for a probable sequence; keep the `num_beams` best beginnings.

Each step extends all beams with all tokens and keeps the best (Lowerre 1976; Sutskever et al. 2014, section 3.2), with the length penalty
and the stopping rules of transformers. Which sequences are finished is decided in shared_data/inference/beams.py.

Level 1 calls `model.generate(num_beams=4)`; level 3 is the same in NumPy. Theory: beam_search.md.

    best = beam_search(model, tokenizer.encode("Once"), SamplingParameters(num_beams=4), max_new_tokens=32)
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shared_data.errors import UserError
from shared_data.inference.beams import Beams, Hypothesis
from shared_data.inference.sampling_parameters import NO_TOKEN_LEFT, SamplingParameters
from shared_data.inference.stop_strings import StopCriteria
from v2_handwritten.inference.penalties import apply_penalties, check_finite
from v2_handwritten.inference.steps import CachedSteps, RecomputedSteps
from v2_handwritten.models.transformer import Transformer


@torch.inference_mode()
def beam_search(
    model: Transformer,
    prompt: list[int],
    sampling: SamplingParameters,
    *,
    max_new_tokens: int,
    stop: StopCriteria | None = None,
    use_cache: bool = True,
) -> Hypothesis:
    """The best finished sequence, prompt included, with its score: the sum of its log-probabilities / length ** length_penalty.

    A batch is one search after the other; each row here is a beam. Penalties change log-probabilities, not logits, as in transformers.
    """
    num_beams, stop = sampling.num_beams, stop or StopCriteria()
    beams = Beams(prompt, num_beams, max_new_tokens, sampling.length_penalty, sampling.early_stopping, stop)
    # The best num_beams continuations might all end; so many more that as many can go on.
    count = max(2, 1 + len(stop.stop_ids)) * num_beams
    make_steps = CachedSteps if use_cache else RecomputedSteps
    steps = make_steps(model, [prompt] * num_beams, max_new_tokens)
    logits = steps.logits
    while True:
        check_finite(logits)
        log_probs = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
        sequences = [beam.ids for beam in beams.running]
        log_probs = apply_penalties(log_probs, sequences, [len(prompt)] * num_beams, sampling)
        so_far = log_probs.new_tensor([beam.score for beam in beams.running])
        totals = so_far[:, None] + log_probs
        if totals.max() == -torch.inf:  # penalties forbid every token of every beam
            if not beams.finished:
                raise UserError(NO_TOKEN_LEFT)
            return beams.finished[0]
        scores, parents, ids = best_continuations(totals, count)
        beams.advance(scores.tolist(), parents.tolist(), ids.tolist())
        if beams.done:
            return beams.finished[0]
        steps.reorder(torch.tensor(beams.parents, device=logits.device))
        logits = steps.step(torch.tensor([beam.ids[-1] for beam in beams.running], device=logits.device))


def best_continuations(
    totals: Float[Tensor, "B V"], count: int
) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"], Int[Tensor, " N"]]:
    """The best of all B x V continuations: their log-probabilities in descending order, the beams that they continue, their ids."""
    best = totals.flatten().topk(min(count, totals.numel()))
    V = totals.shape[1]
    return best.values, best.indices // V, best.indices % V
