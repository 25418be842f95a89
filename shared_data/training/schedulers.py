"""The learning rate of every step: linear warm-up, then a cosine, a line, nothing, or nothing and a late line.

Cosine: Loshchilov & Hutter 2017, eq. 5. `wsd` is warm-up, stable, decay: Hu et al. 2024. A pure function of the
step, so a resumed run needs no state of the schedule. Steps are counted from 0: the first update of a run with warm-up has
learning rate 0, as in transformers (`wsd`: the minimum), and the last one (step total - 1) is just above the minimum.
Level 1 asks transformers' `get_scheduler` for the same numbers; levels 2 and 3 are the same file.

    learning_rate(100, peak=3e-3, total_steps=600, warmup_steps=50, schedule="cosine", min_ratio=0.1)
"""

import math
from typing import Literal

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
    """The learning rate of the update that follows `step` finished ones.

    After the warm-up it falls from `peak` to `min_ratio * peak` at `total_steps` (constant: it stays at `peak`).
    `decay_fraction`: the last part of the steps, in which `wsd` falls; until then it stays at `peak`.
    """
    if step < warmup_steps:
        if schedule == "wsd":
            return peak * (min_ratio + (1 - min_ratio) * step / warmup_steps)
        return peak * step / warmup_steps
    decay_steps = max(1, total_steps - warmup_steps)
    if schedule == "wsd":
        decay_steps = min(decay_steps, max(1, round(decay_fraction * total_steps)))
    done = min(1.0, max(0.0, (step - total_steps + decay_steps) / decay_steps))
    if schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * done))
    elif schedule == "constant":
        return peak
    else:
        factor = 1 - done
    return peak * (min_ratio + (1 - min_ratio) * factor)
