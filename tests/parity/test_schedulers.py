"""The learning rate of every step against transformers' `get_scheduler`."""

from itertools import pairwise, product

import pytest

import shared_data.training.schedulers as v2
import shared_data.training.schedulers as v3
import v1_quick.pretrain.components.schedulers as v1
from tests.parity.recorder import ParityRecorder


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_every_step_agrees_with_transformers(schedule: str, parity: ParityRecorder) -> None:
    rates: dict[str, list[float]] = {"v1": [], "v2": [], "v3": []}
    # A decay over nothing, over part of what the warm-up leaves, and over more than that.
    fractions = (0.0, 0.21, 1.0) if schedule == "wsd" else (0.2,)
    for warmup_steps, min_ratio, decay_fraction in product((0, 1, 7), (0.0, 0.1), fractions):
        options = {
            "total_steps": 40,
            "warmup_steps": warmup_steps,
            "schedule": schedule,
            "min_ratio": min_ratio,
            "decay_fraction": decay_fraction,
        }
        for level, module in (("v1", v1), ("v2", v2), ("v3", v3)):
            rates[level] += [module.learning_rate(step, peak=1.0, **options) for step in range(41)]
    row = {"component": "schedules", "quantity": f"learning rate, {schedule}"}
    parity(levels="v1-v2", actual=rates["v2"], expected=rates["v1"], tolerance=5e-16, **row)
    parity(levels="v2-v3", actual=rates["v3"], expected=rates["v2"], tolerance=0, **row)


@pytest.mark.parametrize("module", [v1, v2, v3])
def test_wsd_stays_at_the_peak_until_the_decay_begins(module: object) -> None:
    options = {"peak": 2.0, "total_steps": 100, "warmup_steps": 10, "min_ratio": 0.25, "decay_fraction": 0.4}
    rates = [module.learning_rate(step, schedule="wsd", **options) for step in range(101)]  # type: ignore[attr-defined]
    assert rates[0] == 0.5  # as transformers: its warm-up begins at the minimum
    assert rates[10:61] == [2.0] * 51
    assert rates[80] == pytest.approx(1.25)
    assert rates[100] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in pairwise(rates[60:]))


@pytest.mark.parametrize("module", [v2, v3])
def test_the_schedule_rises_from_zero_to_the_peak_and_falls_to_the_minimum(module: object) -> None:
    options = {"peak": 2.0, "total_steps": 100, "warmup_steps": 10, "min_ratio": 0.25}
    for schedule in ("cosine", "linear"):
        rates = [module.learning_rate(step, schedule=schedule, **options) for step in range(101)]  # type: ignore[attr-defined]
        assert rates[0] == 0.0
        assert rates[10] == max(rates) == 2.0
        assert rates[100] == pytest.approx(0.5)
        assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("module", [v2, v3])
def test_half_way_through_the_decay_cosine_and_linear_cross(module: object) -> None:
    """The exercise of schedulers.md: both are half way between peak and minimum there."""
    options = {"peak": 1.0, "total_steps": 110, "warmup_steps": 10, "min_ratio": 0.1}
    middle = [module.learning_rate(60, schedule=s, **options) for s in ("cosine", "linear")]  # type: ignore[attr-defined]
    assert middle == pytest.approx([0.55, 0.55], abs=1e-15)
    quarter = [module.learning_rate(35, schedule=s, **options) for s in ("cosine", "linear")]  # type: ignore[attr-defined]
    assert quarter[0] > quarter[1]
