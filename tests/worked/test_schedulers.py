"""The learning rate of twelve steps, as in shared_data/training/schedulers.md."""

from typing import Any

from shared_data.training.schedulers import learning_rate
from tests.worked import agrees

PAGE = "shared_data/training/schedulers.md"

SCHEDULES: list[tuple[Any, dict[str, float]]] = [
    ("constant_with_warmup", {}),
    ("linear", {}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
    ("warmup_stable_decay", {"min_lr_ratio": 0.1, "num_decay_steps": 4}),
]


def test_twelve_steps_of_four_schedules() -> None:
    """In units of the peak, with four steps of warm-up; the last column is what would come after the run."""
    rates = [
        [
            learning_rate(step, peak=1.0, max_steps=12, warmup_steps=4, lr_scheduler_type=name, **options)
            for step in range(13)
        ]
        for name, options in SCHEDULES
    ]
    agrees(PAGE, "step", rates)
