"""The learning rate of every step against transformers' `get_scheduler`, by the same names."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from shared_data.training.schedulers import learning_rate
from tests.parity.recorder import ParityRecorder

CASES: dict[str, list[dict[str, Any]]] = {
    "linear": [{}],
    "cosine": [{}],
    "cosine_with_min_lr": [{"min_lr_rate": 0.1}, {"min_lr_rate": 0.5}],
    "constant": [{}],
    "constant_with_warmup": [{}],
    # A decay over nothing, over part of what the warm-up leaves, and over more than that.
    "warmup_stable_decay": [
        {"num_decay_steps": n, "min_lr_ratio": r} for n in (1, 8, 40) for r in (0.0, 0.1)
    ],
}


def library_rates(name: str, warmup_steps: int, max_steps: int, kwargs: dict[str, Any]) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(
        name, optimizer, warmup_steps, max_steps, scheduler_specific_kwargs=dict(kwargs)
    )
    rates = []
    for _ in range(max_steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warmup_steps", [0, 1, 7])
@pytest.mark.parametrize("name", CASES)
def test_every_step_agrees_with_transformers(name: Any, warmup_steps: int, parity: ParityRecorder) -> None:
    ours, theirs = [], []
    for kwargs in CASES[name]:
        options = {"peak": 1.0, "max_steps": 40, "warmup_steps": warmup_steps, "lr_scheduler_type": name}
        ours += [learning_rate(step, **options, **kwargs) for step in range(41)]
        theirs += library_rates(name, warmup_steps, 40, kwargs)
    parity(
        component="schedules", quantity=f"{name}, warm-up {warmup_steps}", levels="v1-v2",
        actual=ours, expected=theirs, tolerance=5e-16,
    )  # fmt: skip


def test_warmup_stable_decay_stays_at_the_peak_until_the_decay() -> None:
    options = {"peak": 2.0, "max_steps": 100, "warmup_steps": 10, "min_lr_ratio": 0.25, "num_decay_steps": 40}
    rates = [learning_rate(step, lr_scheduler_type="warmup_stable_decay", **options) for step in range(101)]  # type: ignore[arg-type]
    assert rates[0] == 0.5  # as transformers: its warm-up begins at the minimum
    assert rates[10:61] == [2.0] * 51
    assert rates[80] == pytest.approx(1.25)  # half way down, whatever the curve
    assert rates[100] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in pairwise(rates[60:]))


def test_half_way_through_the_decay_cosine_and_linear_cross() -> None:
    """The exercise of schedulers.md: both are half way between peak and zero there."""
    options: dict[str, Any] = {"peak": 1.0, "max_steps": 110, "warmup_steps": 10}
    for step, check in ((60, lambda a, b: a == pytest.approx(b, abs=1e-15)), (35, lambda a, b: a > b)):
        cosine, linear = (
            learning_rate(step, lr_scheduler_type=name, **options) for name in ("cosine", "linear")
        )  # type: ignore[arg-type]
        assert check(cosine, linear)
    assert learning_rate(60, lr_scheduler_type="linear", **options) == pytest.approx(0.5)
