"""-ln p of a model's targets: what perplexity and bits per byte are made of.

The sum over the vocabulary is in float64, whatever the logits are in. Windows over a text, and the two numbers themselves, are
`shared_data/evaluation/windows.py`.

Level 1 takes logits and cross-entropy from the libraries; level 3 is the same in NumPy. Theory: scoring.md.

    score = score_tokens(negative_log_probs, model, tokens, context_length=256, stride=128, batch_size=16, end_of_text_id=0)
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shared_data.device import widest_float
from shared_data.evaluation.windows import IGNORE_INDEX
from v2_handwritten.models.transformer import Transformer


@torch.inference_mode()
def negative_log_probs(
    model: Transformer, input_ids: Int[np.ndarray, "N T"], targets: Int[np.ndarray, "N T"]
) -> Float[np.ndarray, "N T"]:
    """-ln p of each target after the inputs up to its place, without dropout; 0 where a target is IGNORE_INDEX."""
    device, was_training = model.lm_head.weight.device, model.training
    logits = model.eval()(torch.from_numpy(input_ids).to(device))
    model.train(was_training)
    nats = np.zeros(targets.shape)
    for row, ids in enumerate(targets):  # one by one: the exponentials need as much memory as the logits
        scored = torch.from_numpy(ids != IGNORE_INDEX).to(device)
        wanted = torch.from_numpy(ids).to(device)[scored]
        nats[row, ids != IGNORE_INDEX] = negative_log_softmax(logits[row, scored], wanted).cpu().numpy()
    return nats


def negative_log_softmax(logits: Float[Tensor, "n V"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """-ln softmax(logits)[target] = ln Σ exp(logit - max) - (logit of target - max), the sum in float64 (float32 on an Apple GPU)."""
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    log_normalizer = shifted.exp().sum(dim=-1, dtype=widest_float(logits.device)).log()
    return log_normalizer - shifted.gather(-1, targets[:, None])[:, 0]
