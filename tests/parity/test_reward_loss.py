"""The reward loss of levels 2 and 3 against trl's `RewardTrainer`: loss, metrics, every gradient, ten steps in lockstep."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.parity.arrays import array
from tests.parity.block_checks import compare_functions
from tests.parity.preference_cases import (
    doubles,
    lockstep,
    pair_batch,
    pairs,
    reward_loss_of,
    reward_records,
    reward_trainer,
    reward_trio,
    scaled_gradients,
    trl_batch,
    trl_metrics,
)
from tests.parity.recorder import ParityRecorder
from v2_handwritten.align.algorithms.reward_loss import log_sigmoid, reward_loss
from v3_numpy_deep.align.algorithms import reward_loss as v3
from v3_numpy_deep.autograd import Tensor


def test_at_a_tie_the_loss_is_log_2_and_its_derivative_one_half() -> None:
    """Before the first step of DPO every difference is exactly 0, and so it is for a reward model that starts at 0."""
    chosen, rejected = doubles(np.zeros(1)), doubles(np.zeros(1))
    loss, metrics = reward_loss(chosen, rejected)
    loss.backward()
    assert loss.item() == pytest.approx(np.log(2))
    assert (chosen.grad, rejected.grad) == (-0.5, 0.5)
    assert metrics["accuracy"] == 0.0
    arrays = [Tensor(np.zeros(1), requires_grad=True) for _ in range(2)]
    v3.reward_loss(*arrays)[0].backward()
    assert [x.grad for x in arrays] == [-0.5, 0.5]


def test_only_differences_matter_until_the_scores_are_centered() -> None:
    """The exercise of reward_loss.md."""
    chosen, rejected = doubles(array(0, 6)), doubles(array(1, 6))
    loss, _ = reward_loss(chosen, rejected)
    torch.testing.assert_close(loss, reward_loss(chosen + 100, rejected + 100)[0])
    loss.backward()
    assert torch.equal(chosen.grad, -rejected.grad)  # type: ignore[arg-type, operator]
    centered, far = (
        reward_loss(chosen + c, rejected + c, center_rewards_coefficient=0.1)[0] for c in (0, 100)
    )
    assert far > centered + 1000


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_log_sigmoid_equals_torch(parity: ParityRecorder, scale: float) -> None:
    x = torch.from_numpy(np.append(array(5, 20, scale=scale), [0.0, -0.0]))
    compare_functions(
        parity, "log_sigmoid", log_sigmoid, lambda x: torch.nn.functional.logsigmoid(x), {"x": x}, 2e-16
    )


@pytest.mark.parametrize("margins", [None, [0.3, 0.0, 1.2]], ids=["centered", "margins, centered"])
@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_loss_metrics_and_every_gradient_equal_trl(
    parity: ParityRecorder, case: str, margins: Any, tmp_path: Path
) -> None:
    models = reward_trio(case)
    trainer = reward_trainer(models[0], tmp_path, center_rewards_coefficient=0.1)
    rows = reward_records(pairs())
    if margins:
        rows = [row | {"margin": margin} for row, margin in zip(rows, margins, strict=True)]
    losses = [trainer.compute_loss(models[0], trl_batch(trainer, rows))]
    metrics = [trl_metrics(trainer)]
    for level, model in zip(("v2", "v3"), models[1:], strict=True):
        loss, found = reward_loss_of(level, model, pair_batch(pairs(), margins), 0.1)
        losses.append(loss)
        metrics.append(found)
    for loss in losses:
        loss.backward()
    # The library has islands of float32: in a Llama; in margins on their way to the loss; in the accuracy.
    islands = 4e-6 if case.startswith("llama") else 2e-14
    of_margins = (2e-8, 2e-7) if margins else (0.0, 0.0)
    allowed = {"loss": max(islands, of_margins[0]), "metrics": max(islands, 2e-8)}
    allowed["every gradient"] = max(islands, of_margins[1])
    for levels, i, j in (("v2-v1", 1, 0), ("v2-v3", 2, 1)):
        compared = {
            "loss": (losses[i], losses[j]),
            "metrics": ([*metrics[i].values()], [metrics[j][name] for name in metrics[i]]),
            "every gradient": (
                scaled_gradients(models[i], models[j]),
                scaled_gradients(models[j], models[j]),
            ),
        }
        row = {"component": f"RewardTrainer, {case}{', margins' if margins else ''}", "levels": levels}
        for quantity, pair in compared.items():
            parity.each({quantity: pair}, tolerance=allowed[quantity] if levels == "v2-v1" else 3e-14, **row)


def test_ten_steps_in_lockstep_with_trl(parity: ParityRecorder, tmp_path: Path) -> None:
    models = dict(zip(("v1", "v2", "v3"), reward_trio("gpt2"), strict=True))
    trainer = reward_trainer(models["v1"], tmp_path, center_rewards_coefficient=0.1)
    losses: dict[str, Any] = {
        "v1": lambda _: trainer.compute_loss(models["v1"], trl_batch(trainer, reward_records(pairs()))),
        "v2": lambda _: reward_loss_of("v2", models["v2"], pair_batch(pairs()), 0.1)[0],
        "v3": lambda _: reward_loss_of("v3", models["v3"], pair_batch(pairs()), 0.1)[0],
    }
    curves = lockstep(models, losses, steps=10)
    assert curves["v2"][-1] < curves["v2"][0]
    for one, other in (("v2", "v1"), ("v2", "v3")):
        parity(
            component="RewardTrainer, lockstep, gpt2", quantity="loss of ten steps", levels=f"{one}-{other}",
            actual=curves[one], expected=curves[other], tolerance=3e-15,
        )  # fmt: skip
