"""How probable a model finds continuations: ln p(continuation | context) of each request, all that multiple choice is made of.

    ln p(y | x) = Σ_t ln p(y_t | x, y_<t),    the logits of y_t standing one place before it

Choices of one question share its hidden states, and logits are made only where a continuation is predicted (`models/packing.py` and
shared_data/benchmarks/batches.py).

Level 1: lm-evaluation-harness's `HFLM.loglikelihood`. Level 2: the same over torch.
Theory: v2_handwritten/evaluation/benchmarks/harness.md.

    log_likelihoods(model, [TokenRequest([5, 6], [7]), TokenRequest([5, 6], [8])], batch_size=16, max_length=256)
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from shared_data.benchmarks.batches import Batch, LogLikelihood, TokenScores, plan_batches, sum_by_request
from shared_data.benchmarks.token_requests import TokenRequest
from v3_numpy_deep.autograd import no_grad
from v3_numpy_deep.models.packing import packed_hidden_states
from v3_numpy_deep.models.transformer import Transformer


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


def score_tokens(model: Transformer, batch: Batch) -> TokenScores:
    """ln softmax(z)[y] = z_y - max z - ln Σ exp(z - max z) of each looked-up token, and whether z_y is the largest."""
    with no_grad():
        hidden = packed_hidden_states(model, batch.input_ids, batch.attention_mask, batch.logits_to_keep)
        logits = model.logits(hidden).data  # [N, V]
    best = logits.argmax(axis=-1)
    shifted = logits - logits[np.arange(len(logits)), best][:, None]
    log_normalizer = np.log(np.exp(shifted).sum(axis=-1, dtype=np.float64))
    log_probs = shifted[batch.rows, batch.targets] - log_normalizer[batch.rows]
    return log_probs, best[batch.rows] == batch.targets
