"""A model as the evaluation of alignment sees it (`shared_data/alignment/policy_evaluation.py`).

metrics = evaluate_policy(settings, run, "dpo", as_policy(policy, tokenizer), as_policy(reference, tokenizer), prompts, reward)
"""

import numpy as np
from jaxtyping import Float

from shared_data.alignment.token_policy import TokenPolicy
from v3_numpy_deep.autograd import no_grad
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer
from v3_numpy_deep.inference.generate import generate
from v3_numpy_deep.inference.scoring import negative_log_probs
from v3_numpy_deep.models.log_probs import completion_log_probs
from v3_numpy_deep.models.transformer import Transformer


def as_policy(model: Transformer, tokenizer: Tokenizer) -> TokenPolicy:
    """The model with this level's sampling and log-probabilities."""
    return TokenPolicy(model, tokenizer, generate, _log_probs, negative_log_probs)


@no_grad()
def _log_probs(
    model: Transformer,
    input_ids: np.ndarray,
    completion_mask: np.ndarray,
    attention_mask: np.ndarray,
    temperature: float,
) -> Float[np.ndarray, " N"]:
    """log p of each row's completion, in nats."""
    return completion_log_probs(model, input_ids, completion_mask, attention_mask, temperature).data.sum(-1)
