"""-ln p of a model's targets: `torch.nn.functional.cross_entropy` on the model's logits.

Windows over a text, and perplexity and bits per byte from these numbers, are `shared_data/evaluation/windows.py`.

    score = score_tokens(negative_log_probs, model, tokens, context_length=256, stride=128, batch_size=16, end_of_text_id=0)
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel


@torch.inference_mode()
def negative_log_probs(
    model: PreTrainedModel, input_ids: Int[np.ndarray, "N T"], targets: Int[np.ndarray, "N T"]
) -> Float[np.ndarray, "N T"]:
    """-ln p of each target after the inputs up to its place, without dropout; 0 where a target is -100."""
    ids, labels = (torch.from_numpy(array).to(model.device) for array in (input_ids, targets))
    logits = model.eval()(ids, use_cache=False).logits.float()
    return cross_entropy(logits.transpose(1, 2), labels, reduction="none").double().cpu().numpy()
