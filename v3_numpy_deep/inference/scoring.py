"""-ln p of a model's targets: what perplexity and bits per byte are made of.

The sum over the vocabulary is in float64, whatever the logits are in. Windows over a text, and the two numbers themselves, are
`shared_data/evaluation/windows.py`.

Level 1 takes logits and cross-entropy from the libraries; level 2 is the same in torch.
Theory: v2_handwritten/inference/scoring.md.

    score = score_tokens(negative_log_probs, model, tokens, context_length=256, stride=128, batch_size=16, end_of_text_id=0)
"""

import numpy as np
from jaxtyping import Float, Int

from shared_data.evaluation.windows import IGNORE_INDEX
from v3_numpy_deep.autograd import Array, no_grad
from v3_numpy_deep.models.transformer import Transformer


def negative_log_probs(
    model: Transformer, input_ids: Int[Array, "N T"], targets: Int[Array, "N T"]
) -> Float[Array, "N T"]:
    """-ln p of each target after the inputs up to its place, without dropout; 0 where a target is IGNORE_INDEX."""
    was_training = model.training
    with no_grad():
        logits = model.eval()(input_ids).data
    model.train(was_training)
    nats = np.zeros(targets.shape)
    for row, ids in enumerate(targets):  # one by one: the exponentials need as much memory as the logits
        scored = ids != IGNORE_INDEX
        nats[row, scored] = negative_log_softmax(logits[row, scored], ids[scored])
    return nats


def negative_log_softmax(logits: Float[Array, "n V"], targets: Int[Array, " n"]) -> Float[Array, " n"]:
    """-ln softmax(logits)[target] = ln Σ exp(logit - max) - (logit of target - max), the sum in float64."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_normalizer = np.log(np.exp(shifted).sum(axis=-1, dtype=np.float64))
    return log_normalizer - shifted[np.arange(len(targets)), targets]
