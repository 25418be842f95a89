"""Gradient clipping by global norm: `torch.nn.utils.clip_grad_norm_`.

The theory is in v2_handwritten/pretrain/components/gradient_clipping.md. The Trainer calls it (through accelerate) where
`TrainingArguments(max_grad_norm=)` is above 0.

    norm = clip_gradients(model.parameters(), max_norm=1.0)
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients in place so that their global norm is at most `max_norm`; 0 changes nothing.

    Returns the norm before clipping.
    """
    return float(torch.nn.utils.clip_grad_norm_(parameters, max_norm or float("inf")))
