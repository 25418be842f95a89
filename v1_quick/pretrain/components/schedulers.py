"""The learning rate of every step: transformers' `get_scheduler`.

The theory is in v2_handwritten/pretrain/components/schedulers.md. The Trainer makes its scheduler from the same two values
that `scheduler_arguments` gives: `TrainingArguments(lr_scheduler_type=, lr_scheduler_kwargs=)`.

    learning_rate(100, peak=3e-3, total_steps=600, warmup_steps=50, schedule="cosine", min_ratio=0.1)
"""

from typing import Any, Literal

import torch
from transformers import get_scheduler


def learning_rate(
    step: int,
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int,
    schedule: Literal["cosine", "linear", "constant"],
    min_ratio: float,
) -> float:
    """The learning rate of the update that follows `step` finished ones."""
    name, arguments = _scheduler_arguments(schedule, peak, min_ratio)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    scheduler = get_scheduler(name, optimizer, warmup_steps, total_steps, scheduler_specific_kwargs=arguments)
    return peak * float(scheduler.lr_lambdas[0](step))


def _scheduler_arguments(schedule: str, peak: float, min_ratio: float) -> tuple[str, dict[str, Any]]:
    """Our three schedules by transformers' names: its "linear" always ends at zero, its "polynomial" need not."""
    if schedule == "cosine":
        return "cosine_with_min_lr", {"min_lr_rate": min_ratio}
    if schedule == "linear":
        return "polynomial", {"power": 1.0, "lr_end": min_ratio * peak}
    return "constant_with_warmup", {}
