"""The learning rate of every step: linear warm-up, then a cosine, a line, nothing, or nothing and a late cosine.

The shapes and names are those of transformers (`lr_scheduler_type`, `lr_scheduler_kwargs`). Cosine: Loshchilov & Hutter 2017, eq. 5;
`warmup_stable_decay`: Hu et al. 2024. A pure function of the step, so a resumed run needs no state of the schedule. Steps are counted
from 0: the first update of a run with warm-up has learning rate 0, as in transformers, and the last one (step max_steps - 1) is
just above the minimum. Level 1 has transformers' `get_scheduler` inside its trainers.

    learning_rate(100, peak=3e-3, max_steps=600, warmup_steps=50, lr_scheduler_type="cosine_with_min_lr", min_lr_rate=0.1)
"""

import math

from shared_data.settings_training import SchedulerType


def learning_rate(
    step: int,
    *,
    peak: float,
    max_steps: int,
    warmup_steps: int,
    lr_scheduler_type: SchedulerType,
    min_lr_rate: float = 0.0,
    min_lr_ratio: float = 0.0,
    num_decay_steps: float | None = None,
) -> float:
    """The learning rate of the update that follows `step` finished ones.

    After the warm-up it falls from `peak` to `min_lr_rate * peak` at `max_steps` (constant: it stays at `peak`).
    warmup_stable_decay: it stays at `peak` and falls in a cosine over the last `num_decay_steps` (a tenth of all steps by default) to
    `min_lr_ratio * peak`, from where the warm-up began.
    """
    if lr_scheduler_type == "constant":
        return peak
    if lr_scheduler_type == "warmup_stable_decay":
        if step < warmup_steps:
            return peak * (min_lr_ratio + (1 - min_lr_ratio) * step / warmup_steps)
        decay_steps = max(1, max_steps // 10 if num_decay_steps is None else int(num_decay_steps))
        done = max(0.0, (step - (max_steps - decay_steps)) / decay_steps)
        return peak * (min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * done)))
    if step < warmup_steps:
        return peak * step / warmup_steps
    done = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    if lr_scheduler_type == "constant_with_warmup":
        factor = 1.0
    elif lr_scheduler_type == "linear":
        factor = 1 - done
    else:
        factor = 0.5 * (1 + math.cos(math.pi * done))
    return peak * (min_lr_rate + (1 - min_lr_rate) * factor)
