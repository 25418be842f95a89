"""A model as the evaluation of alignment sees it (`shared_data/alignment/policy_evaluation.py`).

metrics = evaluate_policy(settings, run, "dpo", as_policy(policy, tokenizer), as_policy(reference, tokenizer), prompts, reward)
"""

import numpy as np
import torch
from jaxtyping import Float

from shared_data.alignment.token_policy import TokenPolicy
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer
from v2_handwritten.inference.generate import generate
from v2_handwritten.inference.scoring import negative_log_probs
from v2_handwritten.models.log_probs import completion_log_probs
from v2_handwritten.models.transformer import Transformer


def as_policy(model: Transformer, tokenizer: Tokenizer) -> TokenPolicy:
    """The model with this level's sampling and log-probabilities."""
    return TokenPolicy(model, tokenizer, generate, _log_probs, negative_log_probs)


@torch.no_grad()
def _log_probs(
    model: Transformer,
    input_ids: np.ndarray,
    completion_mask: np.ndarray,
    attention_mask: np.ndarray,
    temperature: float,
) -> Float[np.ndarray, " N"]:
    """log p of each row's completion, in nats."""
    device = model.lm_head.weight.device
    ids, completion, real = (
        torch.from_numpy(a).to(device) for a in (input_ids, completion_mask, attention_mask)
    )
    return completion_log_probs(model, ids, completion, real, temperature).sum(-1).cpu().numpy()
