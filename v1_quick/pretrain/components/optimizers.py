"""AdamW: `torch.optim.AdamW`, and the Trainer's rule for what is not decayed.

The theory is in v2_handwritten/pretrain/components/optimizers.md. The Trainer makes this optimizer itself from
`TrainingArguments(learning_rate=, adam_beta1=, …)`; here it stands alone, so that a test can hold it against levels 2, 3.

    AdamW(parameter_groups(model, weight_decay=0.1), learning_rate=3e-3, betas=(0.9, 0.95), epsilon=1e-8)
"""

from typing import Any

import torch
from torch import nn
from transformers import Trainer


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of what is trained: everything but biases and the weights of norms is decayed."""
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # it uses no self
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    names = list(parameters)
    return [
        {"params": [parameters[n] for n in names if n in decayed], "weight_decay": weight_decay},
        {"params": [parameters[n] for n in names if n not in decayed], "weight_decay": 0.0},
    ]


class AdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
    ) -> None:
        # One kernel for the whole update, as the Trainer's default `optim="adamw_torch_fused"`.
        super().__init__(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=True)
