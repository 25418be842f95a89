"""Training on pairs at levels 2 and 3: held-out pairs come into the right order, in any number of threads, by any reference."""

from typing import Any

import numpy as np
import pytest

import v3_numpy_deep.models.sharding as sharding
from shared_data.alignment.pair_batches import Pair, PairBatches
from tests.parity.inference_cases import trio
from tests.parity.preference_cases import (
    PAD,
    lockstep,
    moved_trios,
    pair_batch,
    preference_loss,
    reward_loss_of,
    reward_trio,
    scaled_gradients,
)
from tests.parity.recorder import ParityRecorder, as_array
from tests.parity.training_cases import LEVELS, level_module

GOOD, BAD, CASE = 7, 8, "llama GQA"


def polite_pairs(seed: int, count: int) -> list[Pair]:
    """Random prompts and completions; what makes a completion better is a token somewhere in it."""
    generator = np.random.default_rng(seed)

    def completion(token: int) -> list[int]:
        ids = generator.integers(10, PAD, generator.integers(2, 7)).tolist()
        ids.insert(int(generator.integers(0, len(ids) + 1)), token)
        return [*ids, 3]

    return [
        (generator.integers(10, PAD, 4).tolist(), completion(GOOD), completion(BAD)) for _ in range(count)
    ]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_gradients_agree_in_any_number_of_threads(
    parity: ParityRecorder, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Level 3 shares the rows of a batch out among threads, and their margins with them."""
    monkeypatch.setattr(sharding, "available_threads", lambda: threads)
    batch = pair_batch(polite_pairs(0, 5), margins=[0.0, 0.5, 1.0, 1.5, 2.0])
    policies, references = moved_trios(CASE)
    rewards = reward_trio(CASE)
    for name, models, losses in (
        (
            "reward",
            rewards[1:],
            [reward_loss_of(x, m, batch, 0.1) for x, m in zip(LEVELS, rewards[1:], strict=True)],
        ),
        (
            "dpo",
            policies[1:],
            [
                preference_loss(level, policy, reference, batch, loss_type="ipo")
                for level, policy, reference in zip(LEVELS, policies[1:], references[1:], strict=True)
            ],
        ),
    ):
        (expected, wanted), (loss, metrics) = losses
        expected.backward()
        loss.backward()
        pairs = {
            "loss": (loss, expected),
            "metrics": (list(metrics.values()), list(wanted.values())),
            "every gradient": (
                scaled_gradients(models[1], models[0]),
                scaled_gradients(models[0], models[0]),
            ),
        }
        parity.each(pairs, component=f"{name}, {threads} threads", levels="v2-v3", tolerance=3e-13)


@pytest.mark.parametrize("level", LEVELS)
def test_precomputed_reference_log_probs_equal_live_ones(level: str) -> None:
    """Of pairs in any batch, with any padding around them."""
    train, model = level_module(level, "align.dpo_train"), trio(CASE)[1 + LEVELS.index(level)]
    batches = object.__new__(PairBatches)  # of ids, without a tokenizer
    vars(batches).update(
        pairs=polite_pairs(1, 7), margins=np.zeros(7), batch_size=3, pad_id=PAD, max_length=32
    )
    table = train.reference_log_probs(model, batches)
    pairs = batches.pairs
    live = as_array(train.pair_log_probs(model, pair_batch([pairs[6], pairs[1]])))
    np.testing.assert_allclose(as_array(table[[6, 1]].T.flatten()), live, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_held_out_pairs_come_into_the_right_order(parity: ParityRecorder, kind: str) -> None:
    """After 30 steps on other pairs, along the same losses at both levels."""
    models = dict(zip(LEVELS, reward_trio(CASE)[1:] if kind == "reward" else trio(CASE)[1:], strict=True))
    references = dict(zip(LEVELS, trio(CASE)[1:], strict=True))
    pairs, held_out = polite_pairs(0, 160), pair_batch(polite_pairs(1, 60))

    def loss_of(level: str, batch: Any) -> Any:
        if kind == "reward":
            return reward_loss_of(level, models[level], batch)
        return preference_loss(level, models[level], references[level], batch)

    def of_step(level: str) -> Any:
        return lambda step: loss_of(level, pair_batch(pairs[16 * (step % 10) :][:16]))[0]

    curves = lockstep(models, {level: of_step(level) for level in LEVELS}, steps=30, learning_rate=3e-3)
    metrics = {level: loss_of(level, held_out)[1] for level in LEVELS}
    assert metrics["v2"]["accuracy" if kind == "reward" else "rewards/accuracies"] >= 0.9
    row = {"component": f"{kind} on held-out pairs", "levels": "v2-v3", "tolerance": 1e-13}
    parity(quantity="loss of 30 steps", actual=curves["v3"], expected=curves["v2"], **row)
    values = {level: list(found.values()) for level, found in metrics.items()}
    parity(quantity="held-out metrics", actual=values["v3"], expected=values["v2"], **row)
