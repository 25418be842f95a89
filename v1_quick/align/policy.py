"""A model of transformers as the evaluation of alignment sees it (`shared_data/alignment/policy_evaluation.py`).

metrics = evaluate_policy(settings, run, "dpo", as_policy(policy, tokenizer), as_policy(reference, tokenizer), prompts, reward)
"""

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from shared_data.alignment.token_policy import TokenPolicy
from v1_quick.inference.generate import generate
from v1_quick.inference.scoring import negative_log_probs


def as_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> TokenPolicy:
    """The model with this level's sampling and log-probabilities."""
    return TokenPolicy(model, tokenizer, generate, _log_probs, negative_log_probs)


@torch.inference_mode()
def _log_probs(
    model: PreTrainedModel,
    input_ids: np.ndarray,
    completion_mask: np.ndarray,
    attention_mask: np.ndarray,
    temperature: float,
) -> Float[np.ndarray, " N"]:
    """log p of each row's completion, in nats; the padding is on the right, where nothing sees it."""
    ids, completion = (torch.from_numpy(array).to(model.device) for array in (input_ids, completion_mask))
    logits = model(ids, use_cache=False).logits[:, :-1].float() / temperature
    log_probs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return (log_probs * completion[:, 1:]).sum(-1).cpu().numpy()
