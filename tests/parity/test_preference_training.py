"""Training on pairs at levels 2 and 3: losses of a batch and their gradients, references live and precomputed, and that it learns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from v2_handwritten.align.algorithms.log_probabilities import frozen_copy as frozen2
from v2_handwritten.align.preference_data import PreferenceLoader as Loader2
from v3_numpy_deep.align.algorithms.log_probabilities import frozen_copy as frozen3
from v3_numpy_deep.align.preference_data import PreferenceLoader as Loader3

from tests.parity.inference_cases import trio
from tests.parity.preference_cases import PAD, pairs, reward_trainer, reward_trio, trl_batch
from tests.parity.recorder import ParityRecorder
from v2_handwritten.align import dpo_train as dpo2
from v2_handwritten.align import rm_train as rm2
from v2_handwritten.pretrain.components.optimizers import AdamW as AdamW2
from v3_numpy_deep.align import dpo_train as dpo3
from v3_numpy_deep.align import preference_data as preference_data3
from v3_numpy_deep.align import rm_train as rm3
from v3_numpy_deep.pretrain.components.optimizers import AdamW as AdamW3

GOOD, BAD, CASE = 7, 8, "llama GQA"
Pairs = list[tuple[list[int], list[int], list[int]]]


def polite_pairs(seed: int, count: int) -> Pairs:
    """Random prompts and replies; what makes a reply better is a token somewhere in it."""
    generator = np.random.default_rng(seed)

    def reply(token: int) -> list[int]:
        ids = generator.integers(10, PAD, generator.integers(2, 7)).tolist()
        ids.insert(int(generator.integers(0, len(ids) + 1)), token)
        return [*ids, 3]

    return [(generator.integers(10, PAD, 4).tolist(), reply(GOOD), reply(BAD)) for _ in range(count)]


def optimizers(model: Any, arrays: Any, rate: float) -> list[Any]:
    return [
        kind([{"parameters": list(m.parameters()), "weight_decay": 0.0}], rate, (0.9, 0.95), 1e-8)
        for kind, m in ((AdamW2, model), (AdamW3, arrays))
    ]


def all_gradients(model: Any) -> np.ndarray:
    """Every gradient in a row, as the optimizer sees them."""
    return np.concatenate([np.ravel(np.asarray(parameter.grad)) for parameter in model.parameters()])


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_batch_losses_metrics_and_gradients_agree_in_any_number_of_threads(
    parity: ParityRecorder, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(preference_data3, "available_threads", lambda: threads)
    library, model, arrays = trio(CASE)
    _, reward, array_reward = reward_trio(library, model, arrays)
    batch = Loader2(polite_pairs(0, 5), 5, PAD, 32, seed=0).next_batch()
    batch3 = Loader3(polite_pairs(0, 5), 5, PAD, 32, seed=0).next_batch()
    reference, margins = np.linspace(-30, -20, 10).reshape(5, 2), np.linspace(0, 2, 5)
    for name, ours, theirs, (loss, metrics), (expected, wanted) in (
        (
            "reward_batch_loss",
            array_reward,
            reward,
            rm3.reward_batch_loss(array_reward, batch3, 0.1, margins),
            rm2.reward_batch_loss(reward, batch, 0.1, margins),
        ),
        (
            "dpo_batch_loss",
            arrays,
            model,
            dpo3.dpo_batch_loss(arrays, batch3, reference, loss_type="ipo"),
            dpo2.dpo_batch_loss(model, batch, reference, loss_type="ipo"),
        ),
    ):
        loss.backward()
        expected.backward()
        for quantity, a, b in (
            ("loss", loss, expected),
            ("metrics", list(metrics.values()), list(wanted.values())),
            ("every gradient", all_gradients(ours), all_gradients(theirs)),
        ):
            parity(
                component=f"{name}, {threads} threads",
                quantity=quantity,
                levels="v2-v3",
                actual=a,
                expected=b,
                tolerance=2e-14,
            )


def test_a_reference_computed_once_equals_a_live_one() -> None:
    _, model, arrays = trio(CASE)
    for module, loader_class, reference in (
        (dpo2, Loader2, frozen2(model.train())),
        (dpo3, Loader3, frozen3(arrays.train())),
    ):
        loader = loader_class(polite_pairs(1, 7), 3, PAD, 32, seed=4)
        table = module.reference_log_probabilities(reference, loader)
        assert table.shape == (7, 2)
        for _ in range(4):
            batch = loader.next_batch()
            live = module.batch_log_probabilities(reference, batch)
            np.testing.assert_allclose(table[loader.indices], live, rtol=0, atol=1e-12)


def test_a_reward_model_learns_what_makes_a_reply_better(parity: ParityRecorder) -> None:
    """Held-out pairs in the right order after 40 steps, at both levels, along the same losses."""
    models = reward_trio(*trio(CASE))[1:]
    loaders = [kind(polite_pairs(0, 200), 16, PAD, 32, seed=0) for kind in (Loader2, Loader3)]
    held_out = [kind(polite_pairs(1, 60), 25, PAD, 32, seed=0) for kind in (Loader2, Loader3)]
    steppers, losses = optimizers(*models, rate=3e-3), []
    before = rm2.evaluate_reward_model(models[0], held_out[0])
    for _ in range(40):
        row = []
        for module, model, loader, stepper in zip((rm2, rm3), models, loaders, steppers, strict=True):
            loss, _ = module.reward_batch_loss(model, loader.next_batch())
            loss.backward()
            stepper.step()
            stepper.zero_grad()
            row.append(loss.item())
        losses.append(row)
    after = [
        module.evaluate_reward_model(m, h) for module, m, h in zip((rm2, rm3), models, held_out, strict=True)
    ]
    assert before["accuracy"] < 0.7
    assert after[0]["accuracy"] >= 0.95
    for quantity, a, b in (
        ("loss of 40 steps", np.array(losses)[:, 1], np.array(losses)[:, 0]),
        ("held-out loss, accuracy, margin", list(after[1].values()), list(after[0].values())),
    ):
        parity(
            component="reward model, lockstep",
            quantity=quantity,
            levels="v2-v3",
            actual=a,
            expected=b,
            tolerance=6e-15,
        )


def test_dpo_prefers_held_out_replies_that_are_better(
    parity: ParityRecorder,
) -> None:
    """Held-out pairs in the right order after 25 steps, at both levels, along the same losses."""
    models = trio(CASE)[1:]
    loaders = [kind(polite_pairs(0, 200), 16, PAD, 32, seed=0) for kind in (Loader2, Loader3)]
    held_out = [kind(polite_pairs(1, 60), 25, PAD, 32, seed=0) for kind in (Loader2, Loader3)]
    modules = (dpo2, dpo3)
    references = [frozen2(models[0]), frozen3(models[1])]
    tables, exams = (
        [
            module.reference_log_probabilities(r, x)
            for module, r, x in zip(modules, references, which, strict=True)
        ]
        for which in (loaders, held_out)
    )
    steppers, losses = optimizers(*models, rate=2e-3), []
    before = dpo2.evaluate_dpo(models[0], held_out[0], exams[0])
    for _ in range(25):
        row = []
        for module, model, loader, table, stepper in zip(
            modules, models, loaders, tables, steppers, strict=True
        ):
            batch = loader.next_batch()
            loss, _ = module.dpo_batch_loss(model, batch, table[loader.indices])
            loss.backward()
            stepper.step()
            stepper.zero_grad()
            row.append(loss.item())
        losses.append(row)
    after = [m.evaluate_dpo(a, h, e) for m, a, h, e in zip(modules, models, held_out, exams, strict=True)]
    assert before["loss"] == pytest.approx(np.log(2))
    assert before["rewards/margins"] == pytest.approx(0, abs=1e-12)
    assert after[0]["rewards/accuracies"] >= 0.9
    assert after[0]["rewards/margins"] > 0.3
    for quantity, a, b in (
        ("loss of 25 steps", np.array(losses)[:, 1], np.array(losses)[:, 0]),
        ("held-out metrics", list(after[1].values()), list(after[0].values())),
    ):
        parity(
            component="dpo, lockstep",
            quantity=quantity,
            levels="v2-v3",
            actual=a,
            expected=b,
            tolerance=6e-15,
        )


def test_ten_steps_of_the_reward_model_in_lockstep_with_trl(parity: ParityRecorder, tmp_path: Path) -> None:
    library, model, _ = reward_trio(*trio("gpt2"))
    trainer = reward_trainer(library, tmp_path, center_rewards_coefficient=0.1)
    records = [{"chosen_ids": p + c, "rejected_ids": p + r} for p, c, r in pairs()]
    batch = Loader2(pairs(), 3, PAD, 32, seed=0, shuffle=False).next_batch()
    theirs = torch.optim.AdamW(
        library.library.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0
    )
    curves = []
    ours = AdamW2([{"parameters": list(model.parameters()), "weight_decay": 0.0}], 1e-3, (0.9, 0.95), 1e-8)
    for _ in range(10):
        expected = trainer.compute_loss(library.library, trl_batch(trainer, records))
        loss, _ = rm2.reward_batch_loss(model, batch, 0.1)
        for value, stepper in ((expected, theirs), (loss, ours)):
            value.backward()
            stepper.step()
            stepper.zero_grad()
        curves.append((loss.item(), expected.item()))
    actual, wanted = np.array(curves).T
    assert wanted[-1] < wanted[0]
    parity(
        component="RewardTrainer, lockstep, gpt2",
        quantity="loss of ten steps",
        levels="v2-v1",
        actual=actual,
        expected=wanted,
        tolerance=3e-15,
    )
