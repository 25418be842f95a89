"""How probable a model finds continuations: ln p(continuation | context) of each request, all that multiple choice is made of.

    ln p(y | x) = Σ_t ln p(y_t | x, y_<t),    the logits of y_t standing one place before it

Choices of one question share its hidden states, and logits are made only where a continuation is predicted (`models/packing.py` and
shared_data/benchmarks/batches.py).

Level 1: lm-evaluation-harness's `HFLM.loglikelihood`. Level 3: the same over NumPy. Theory: harness.md.

    log_likelihoods(model, [TokenRequest([5, 6], [7]), TokenRequest([5, 6], [8])], batch_size=16, max_length=256)
"""

from collections.abc import Sequence
from functools import partial

import torch

from shared_data.benchmarks.batches import Batch, LogLikelihood, TokenScores, plan_batches, sum_by_request
from shared_data.benchmarks.token_requests import TokenRequest
from shared_data.device import widest_float
from v2_handwritten.models.packing import packed_hidden_states
from v2_handwritten.models.transformer import Transformer


def log_likelihoods(
    model: Transformer, requests: Sequence[TokenRequest], batch_size: int, max_length: int
) -> list[LogLikelihood]:
    """Σ ln p of each request's continuation in nats, and whether greedy decoding would write it, without dropout.

    batch_size: rows in one forward pass. max_length: positions; of a longer request the beginning is cut off.
    """
    was_training = model.training
    batches = plan_batches(requests, batch_size, max_length)
    found = sum_by_request(partial(score_tokens, model.eval()), batches, len(requests))
    model.train(was_training)
    return found


@torch.inference_mode()
def score_tokens(model: Transformer, batch: Batch) -> TokenScores:
    """ln softmax(z)[y] = z_y - max z - ln Σ exp(z - max z) of each looked-up token, and whether z_y is the largest."""
    device = model.lm_head.weight.device
    input_ids, attention_mask, logits_to_keep, rows, targets = (
        torch.from_numpy(array).to(device)
        for array in (batch.input_ids, batch.attention_mask, batch.logits_to_keep, batch.rows, batch.targets)
    )
    hidden = packed_hidden_states(model, input_ids, attention_mask, logits_to_keep)  # [N, C]
    logits = model.logits(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    largest, best = logits.max(dim=-1)
    shifted = logits.sub_(largest[:, None])
    chosen = shifted[rows, targets]
    log_normalizer = shifted.exp_().sum(dim=-1, dtype=widest_float(device)).log()
    return (chosen - log_normalizer[rows]).double().cpu().numpy(), (best[rows] == targets).cpu().numpy()
