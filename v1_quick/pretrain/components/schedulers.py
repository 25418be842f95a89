"""The learning rate of every step: transformers' `get_scheduler`.

The theory is in v2_handwritten/pretrain/components/schedulers.md. The Trainer makes its scheduler from the same two values
that `scheduler_arguments` gives: `TrainingArguments(lr_scheduler_type=, lr_scheduler_kwargs=)`.

    learning_rate(100, peak=3e-3, total_steps=600, warmup_steps=50, schedule="cosine", min_ratio=0.1)
"""

from typing import Any, Literal

import torch
from transformers import get_scheduler

from shared_data.settings_training import OptimizerSettings

Schedule = Literal["cosine", "linear", "constant", "wsd"]


def learning_rate(
    step: int,
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int,
    schedule: Schedule,
    min_ratio: float,
    decay_fraction: float = 0.2,
) -> float:
    """The learning rate of the update that follows `step` finished ones."""
    section = OptimizerSettings(
        steps=total_steps,
        learning_rate=peak,
        warmup_steps=warmup_steps,
        schedule=schedule,
        min_learning_rate_ratio=min_ratio,
        decay_fraction=decay_fraction,
    )
    name, arguments = _scheduler_arguments(section)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    scheduler = get_scheduler(name, optimizer, warmup_steps, total_steps, scheduler_specific_kwargs=arguments)
    return peak * float(scheduler.lr_lambdas[0](step))


def _scheduler_arguments(section: OptimizerSettings) -> tuple[str, dict[str, Any]]:
    """Our schedules by transformers' names: its "linear" always ends at zero, its "polynomial" need not."""
    min_ratio = section.min_learning_rate_ratio
    if section.schedule == "cosine":
        return "cosine_with_min_lr", {"min_lr_rate": min_ratio}
    if section.schedule == "linear":
        return "polynomial", {"power": 1.0, "lr_end": min_ratio * section.learning_rate}
    if section.schedule == "wsd":
        after_warmup = max(0, section.steps - section.warmup_steps)
        decay_steps = min(after_warmup, round(section.decay_fraction * section.steps))
        options = {"num_decay_steps": decay_steps, "decay_type": "linear", "min_lr_ratio": min_ratio}
        return "warmup_stable_decay", options
    return "constant_with_warmup", {}
