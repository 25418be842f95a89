"""Training a reward model on preference pairs: the loss of a batch, and the exam on pairs that were held out.

Both replies of a pair pass through the model in one batch; the loss compares their scores (algorithms/reward_loss.md). What a
step does with the loss, and what surrounds the steps, is the training loop's.

Level 1: trl's `RewardTrainer`. Level 2: the same over torch, whose kernels use all cores by themselves.

    loss, metrics = reward_batch_loss(model, loader.next_batch())
"""

from collections import Counter

import numpy as np

from v3_numpy_deep.align.algorithms.dpo import PreferenceBatch
from v3_numpy_deep.align.algorithms.reward_loss import reward_loss
from v3_numpy_deep.align.preference_data import PreferenceLoader, _pair_shards
from v3_numpy_deep.autograd import Array, Tensor, no_grad
from v3_numpy_deep.autograd.memory import keep_freed_memory
from v3_numpy_deep.autograd.parallel import data_parallel
from v3_numpy_deep.models.reward_model import RewardModel


def reward_batch_loss(
    model: RewardModel, batch: PreferenceBatch, center_coefficient: float = 0.0
) -> tuple[Tensor, dict[str, float]]:
    """Mean loss of the pairs of a batch, and the metrics of `reward_loss`."""
    keep_freed_memory()
    B = len(batch.input_ids) // 2
    scores = np.empty(2 * B, model.score.weight.dtype)

    def loss_of(rows: Array) -> Tensor:
        found = model(batch.input_ids[rows], batch.attention_mask[rows])
        scores[rows] = found.data
        half = len(rows) // 2
        return reward_loss(found[:half], found[half:], center_coefficient=center_coefficient)[0]

    parts = _pair_shards(B, model)
    weights = [len(rows) / (2 * B) for rows in parts]
    loss = data_parallel(loss_of, parts, weights, list(model.parameters()))
    _, metrics = reward_loss(Tensor(scores[:B]), Tensor(scores[B:]))
    return loss, metrics


def evaluate_reward_model(
    model: RewardModel, loader: PreferenceLoader, max_batches: int | None = None
) -> dict[str, float]:
    """`loss`, `accuracy` and `margin` over the pairs of a loader, each once; every pair counts the same."""
    was_training = model.training
    model.eval()
    totals: Counter[str] = Counter()
    for batch in loader.one_pass(max_batches):
        B = len(batch.input_ids) // 2
        with no_grad():
            loss, metrics = reward_batch_loss(model, batch)
        totals.update({"pairs": B, "loss": loss.item() * B})
        totals.update({name: metrics[name] * B for name in ("accuracy", "margin")})
    model.train(was_training)
    return {name: totals[name] / totals["pairs"] for name in ("loss", "accuracy", "margin")}
