"""The reward loss at all levels: values, gradients, metrics; against trl's RewardTrainer on a batch of tiny models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.parity.arrays import array
from tests.parity.block_checks import compare_functions
from tests.parity.inference_cases import trio
from tests.parity.model_cases import gradients
from tests.parity.preference_cases import (
    doubles,
    pairs,
    reward_trainer,
    reward_trio,
    right_padded,
    trl_batch,
    trl_metrics,
)
from tests.parity.recorder import ParityRecorder
from v1_quick.align.algorithms import reward_loss as v1
from v2_handwritten.align.algorithms import reward_loss as v2
from v3_numpy_deep.align.algorithms import reward_loss as v3
from v3_numpy_deep.autograd import Tensor

B = 6
CHOSEN, REJECTED, MARGIN = array(0, B, scale=2.0), array(1, B, scale=2.0), np.abs(array(2, B))
OPTIONS: dict[str, tuple[np.ndarray | None, float]] = {
    "plain": (None, 0.0),
    "margin": (MARGIN, 0.0),
    "centered": (None, 0.1),
    "margin, centered": (MARGIN, 0.1),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_loss_gradients_and_metrics_agree_at_all_levels(parity: ParityRecorder, option: str) -> None:
    margin, coefficient = OPTIONS[option]
    torch_margin = None if margin is None else torch.from_numpy(margin)
    ours, theirs = [doubles(CHOSEN), doubles(REJECTED)], [doubles(CHOSEN), doubles(REJECTED)]
    arrays = [Tensor(x.copy(), requires_grad=True) for x in (CHOSEN, REJECTED)]
    results: list[tuple[Any, dict[str, float], list[Any]]] = []
    for level, inputs, m in ((v1, theirs, torch_margin), (v2, ours, torch_margin), (v3, arrays, margin)):
        loss, metrics = level.reward_loss(*inputs, margin=m, center_coefficient=coefficient)
        loss.backward()
        results.append((loss, metrics, [x.grad for x in inputs]))
    for levels, i, j in (("v2-v1", 1, 0), ("v2-v3", 2, 1)):
        assert list(results[i][1]) == list(results[j][1])
        for quantity, a, b in (
            ("loss", results[i][0], results[j][0]),
            ("metrics", list(results[i][1].values()), list(results[j][1].values())),
            ("grad chosen", results[i][2][0], results[j][2][0]),
            ("grad rejected", results[i][2][1], results[j][2][1]),
        ):
            component = f"reward_loss, {option}"
            parity(
                component=component, quantity=quantity, levels=levels, actual=a, expected=b, tolerance=3e-16
            )


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_loss_metrics_and_every_gradient_equal_trl(parity: ParityRecorder, case: str, tmp_path: Path) -> None:
    """RewardTrainer.compute_loss on a padded batch with margins and centering, and the gradient of every weight."""
    library, model, _ = reward_trio(*trio(case))
    trainer = reward_trainer(library, tmp_path, center_rewards_coefficient=0.1)
    margins = [0.3, 0.0, 1.2]
    rows = [
        {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected, "margin": margin}
        for (prompt, chosen, rejected), margin in zip(pairs(), margins, strict=True)
    ]
    expected = trainer.compute_loss(library.library, trl_batch(trainer, rows))
    expected.backward()

    texts = [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
    ids, mask = (torch.from_numpy(x) for x in right_padded(texts))
    chosen, rejected = model.eval()(ids, mask).chunk(2)
    # the collator makes the margins float32 on their way
    margin = torch.tensor(margins).double()
    loss, metrics = v2.reward_loss(chosen, rejected, margin=margin, center_coefficient=0.1)
    loss.backward()
    theirs, found = trl_metrics(trainer), gradients(model)
    wanted = gradients(library)
    assert found.keys() == wanted.keys()
    islands = 4e-6 if case.startswith("llama") else 2e-14
    for quantity, a, b in (
        ("loss", loss, expected),
        ("metrics", list(metrics.values()), [theirs[name] for name in metrics]),
        (
            "every gradient",
            np.concatenate([np.ravel(found[n] / wanted[n].abs().max()) for n in wanted]),
            np.concatenate([np.ravel(wanted[n] / wanted[n].abs().max()) for n in wanted]),
        ),
    ):
        parity(
            component=f"RewardTrainer, {case}",
            quantity=quantity,
            levels="v2-v1",
            actual=a,
            expected=b,
            tolerance=max(islands, 2e-8) if quantity == "metrics" else islands,
        )


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_log_sigmoid_equals_the_library(parity: ParityRecorder, scale: float) -> None:
    x = np.append(array(5, 20, scale=scale), [0.0, -0.0])
    compare_functions(
        parity, "log_sigmoid", v2.log_sigmoid, v1.log_sigmoid, {"x": torch.from_numpy(x)}, 2e-16
    )


def test_at_a_tie_the_derivative_is_one_half() -> None:
    """Before the first step of DPO every difference is exactly 0, and so it is for a reward model that starts at 0."""
    chosen, rejected = doubles(np.zeros(1)), doubles(np.zeros(1))
    loss, metrics = v2.reward_loss(chosen, rejected)
    loss.backward()
    assert loss.item() == pytest.approx(np.log(2))
    assert (chosen.grad, rejected.grad) == (-0.5, 0.5)
    assert metrics["accuracy"] == 0.0
    arrays = [Tensor(np.zeros(1), requires_grad=True) for _ in range(2)]
    v3.reward_loss(*arrays)[0].backward()
    assert [x.grad for x in arrays] == [-0.5, 0.5]


def test_only_differences_matter_until_the_scores_are_centered() -> None:
    """The exercise of reward_loss.md."""
    chosen, rejected = doubles(CHOSEN), doubles(REJECTED)
    loss, _ = v2.reward_loss(chosen, rejected)
    moved, _ = v2.reward_loss(chosen + 100, rejected + 100)
    torch.testing.assert_close(loss, moved)
    loss.backward()
    assert chosen.grad is not None
    assert torch.equal(chosen.grad, -rejected.grad)
    centered, _ = v2.reward_loss(chosen, rejected, center_coefficient=0.1)
    far, _ = v2.reward_loss(chosen + 100, rejected + 100, center_coefficient=0.1)
    assert far > centered + 1000
