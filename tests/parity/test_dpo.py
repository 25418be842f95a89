"""DPO of levels 2 and 3 against trl's `DPOTrainer`: loss, metrics, every gradient, the batch, ten steps in lockstep."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from shared_data.alignment.pair_batches import pad_pairs
from tests.parity.preference_cases import (
    PAD,
    doubles,
    dpo_records,
    dpo_trainer,
    lockstep,
    moved_trios,
    pair_batch,
    pairs,
    preference_loss,
    scaled_gradients,
    trl_batch,
    trl_metrics,
)
from tests.parity.recorder import ParityRecorder
from tests.parity.training_cases import LEVELS
from v2_handwritten.align.algorithms.dpo import dpo_loss
from v3_numpy_deep.align.algorithms import dpo as v3
from v3_numpy_deep.autograd import Tensor

VARIANTS: dict[str, dict[str, Any]] = {
    "sigmoid": {"beta": 0.3},
    "sigmoid, smoothed": {"beta": 0.3, "label_smoothing": 0.2},
    "hinge": {"beta": 0.1, "loss_type": "hinge"},
    "ipo": {"beta": 0.3, "loss_type": "ipo"},
}


def test_the_first_loss_is_log_2_and_its_gradient_that_of_a_log_ratio() -> None:
    """The exercise of dpo.md: at h = 0 each pair weighs β/2, and a pair weighs less the better it is ordered."""
    chosen, rejected, fixed = doubles(np.zeros(3)), doubles(np.zeros(3)), torch.zeros(3).double()
    loss, metrics = dpo_loss(chosen, rejected, fixed, fixed, beta=0.3)
    loss.backward()
    assert loss.item() == pytest.approx(np.log(2))
    np.testing.assert_allclose(chosen.grad * 3, -0.15)  # type: ignore[operator]
    np.testing.assert_allclose(rejected.grad * 3, 0.15)  # type: ignore[operator]
    assert metrics["rewards/accuracies"] == 0.0  # a tie is not won
    ordered = doubles(np.array([-5.0, 0.0, 5.0]))
    dpo_loss(ordered, fixed, fixed, fixed, beta=0.3)[0].backward()
    expected = 0.3 / (1 + np.exp(0.3 * np.array([-5.0, 0.0, 5.0])))
    np.testing.assert_allclose(-ordered.grad * 3, expected)  # type: ignore[operator]


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_metrics_and_every_gradient_equal_trl(
    parity: ParityRecorder, variant: str, case: str, tmp_path: Path
) -> None:
    """trl's sigmoid loss has no smoothing; its aot loss has, and with one pair aot is sigmoid."""
    policies, references = moved_trios(case)
    smoothed = {"loss_type": "aot"} if "smoothed" in variant else {}
    trainer = dpo_trainer(policies[0], references[0], tmp_path, **VARIANTS[variant] | smoothed)
    given = pairs()[:1] if smoothed else pairs()
    expected = trainer.compute_loss(policies[0].library, trl_batch(trainer, dpo_records(given)))
    wanted = trl_metrics(trainer)
    results: list[tuple[Any, list[float]]] = []
    for level, policy, reference in zip(LEVELS, policies[1:], references[1:], strict=True):
        loss, metrics = preference_loss(level, policy, reference, pair_batch(given), **VARIANTS[variant])
        results.append((loss, list(metrics.values())))
    results.insert(0, (expected, [wanted[name] for name in metrics]))
    for loss, _ in results:
        loss.backward()
    models = [policies[0].library, *policies[1:]]
    islands = 5e-6 if case.startswith("llama") else 2e-14
    for levels, i, j, tolerance in (("v2-v1", 1, 0, islands), ("v2-v3", 2, 1, 3e-14)):
        row = {"component": f"DPOTrainer, {variant}, {case}", "levels": levels}
        gradients = scaled_gradients(models[i], models[j]), scaled_gradients(models[j], models[j])
        parity.each(
            {"loss": (results[i][0], results[j][0]), "every gradient": gradients}, tolerance=tolerance, **row
        )
        # trl counts the accuracy in float32
        allowed = max(tolerance, 3e-9) if levels == "v2-v1" else tolerance
        parity.each({"metrics": (results[i][1], results[j][1])}, tolerance=allowed, **row)


def test_ten_steps_in_lockstep_with_trl(parity: ParityRecorder, tmp_path: Path) -> None:
    """The same pairs, AdamW, ten steps: the same losses and weights, and the references stay where they were."""
    policies, references = moved_trios("gpt2")
    trainer = dpo_trainer(policies[0], references[0], tmp_path, beta=0.3)
    before = {name: np.array(value) for name, value in references[1].state_dict().items()}
    models = dict(zip(("v1", "v2", "v3"), [policies[0].library, *policies[1:]], strict=True))
    losses: dict[str, Any] = {
        "v1": lambda _: trainer.compute_loss(models["v1"], trl_batch(trainer, dpo_records(pairs()))),
        "v2": lambda _: preference_loss("v2", models["v2"], references[1], pair_batch(pairs()), beta=0.3)[0],
        "v3": lambda _: preference_loss("v3", models["v3"], references[2], pair_batch(pairs()), beta=0.3)[0],
    }
    curves = lockstep(models, losses, steps=10)
    assert curves["v2"][-1] < 0.5 * curves["v2"][0]
    states = {level: each.state_dict() for level, each in models.items()}
    weights = {
        level: np.concatenate([np.ravel(state[name]) for name in states["v2"]])
        for level, state in states.items()
    }
    for one, other in (("v2", "v1"), ("v2", "v3")):
        row = {"component": "DPOTrainer, lockstep, gpt2", "levels": f"{one}-{other}"}
        parity(
            quantity="loss of ten steps", actual=curves[one], expected=curves[other], tolerance=5e-15, **row
        )
        parity(
            quantity="weights after ten steps",
            actual=weights[one],
            expected=weights[other],
            tolerance=1e-10,
            **row,
        )
    for reference in references[1:]:
        state = reference.state_dict()
        assert all(np.array_equal(state[name], value) for name, value in before.items())


def test_the_policy_may_not_be_its_own_reference() -> None:
    """Trained along, the reference would cancel every change: the loss stays log 2 and nothing is learned."""
    trained = doubles(np.ones(2))
    with pytest.raises(AssertionError, match="reference must not be trained"):
        dpo_loss(trained, trained, trained, trained)
    array = Tensor(np.ones(2))
    with pytest.raises((AssertionError, TypeCheckError)):
        v3.dpo_loss(array, array, array, array)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("level", LEVELS)
def test_the_loss_of_a_batch_is_the_mean_of_its_pairs_alone(level: str, variant: str) -> None:
    """Padding is counted nowhere."""
    policies, references = moved_trios("llama GQA")
    models = policies[1 + LEVELS.index(level)], references[1 + LEVELS.index(level)]
    loss, metrics = preference_loss(level, *models, pair_batch(pairs()), **VARIANTS[variant])
    alone = [preference_loss(level, *models, pair_batch([pair]), **VARIANTS[variant]) for pair in pairs()]
    assert loss.item() == pytest.approx(np.mean([value.item() for value, _ in alone]), abs=1e-12)
    for name, value in metrics.items():
        assert value == pytest.approx(np.mean([found[name] for _, found in alone]), abs=1e-12)


@pytest.mark.parametrize("max_length", [32, 9, 8])
def test_batches_equal_those_of_the_collator_of_trl(max_length: int) -> None:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    expected = DataCollatorForPreference(pad_token_id=PAD, max_length=max_length)(dpo_records(pairs()))
    found = dict(
        zip(
            ("input_ids", "completion_mask", "attention_mask"),
            pad_pairs(pairs(), PAD, max_length),
            strict=True,
        )
    )
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
