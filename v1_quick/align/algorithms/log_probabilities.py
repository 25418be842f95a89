"""How probable a model finds a reply: trl's `selective_log_softmax`, `entropy_from_logits` and `masked_mean`.

trl is imported by the functions that need it: it takes seconds.

    python -c "import torch; from v1_quick.align.algorithms.log_probabilities import *; print(selected_log_probabilities(torch.zeros(1, 2, 8), torch.tensor([[1, 2]])))"
"""

import copy

from torch import Tensor

from v1_quick.models.transformer import Transformer


def selected_log_probabilities(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits [B, T, V] / temperature) of the tokens `ids` [B, T]."""
    from trl.trainer.utils import selective_log_softmax

    return selective_log_softmax(logits / temperature, ids)


def entropy(logits: Tensor) -> Tensor:
    """-Σ p log p in nats, [B, T]."""
    from trl.trainer.utils import entropy_from_logits

    return entropy_from_logits(logits)


def reply_log_probabilities(
    model: Transformer,
    input_ids: Tensor,
    reply_mask: Tensor,
    attention_mask: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """[B, T-1]: column t is log p(token t+1 | tokens 0…t) where token t+1 belongs to the reply, else 0."""
    position_ids = None if attention_mask is None else (attention_mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids, position_ids, attention_mask=attention_mask)[:, :-1]
    found = selected_log_probabilities(logits, input_ids[:, 1:], temperature)
    return found.masked_fill(reply_mask[:, 1:] == 0, 0.0)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the places where the mask is 1."""
    from trl.experimental.ppo.ppo_trainer import masked_mean

    return masked_mean(x, mask)


def frozen_copy(model: Transformer) -> Transformer:
    """The reference model: the same weights in memory of their own, without gradients and without dropout."""
    return copy.deepcopy(model).requires_grad_(False).eval()
