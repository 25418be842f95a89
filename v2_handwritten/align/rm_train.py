"""Training a reward model on preference pairs: the loss of a batch, and the exam on pairs that were held out.

Both replies of a pair pass through the model in one batch; the loss compares their scores (algorithms/reward_loss.md). What a
step does with the loss, and what surrounds the steps, is the training loop's.

Level 1: trl's `RewardTrainer`. Level 3: the same over its own autograd, the pairs shared out among threads.

    loss, metrics = reward_batch_loss(model, loader.next_batch())
"""

from collections import Counter

import torch
from jaxtyping import Float
from torch import Tensor

from v2_handwritten.align.algorithms.dpo import PreferenceBatch
from v2_handwritten.align.algorithms.reward_loss import reward_loss
from v2_handwritten.align.preference_data import PreferenceLoader
from v2_handwritten.models.reward_model import RewardModel


def reward_batch_loss(
    model: RewardModel, batch: PreferenceBatch, center_coefficient: float = 0.0
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Mean loss of the pairs of a batch, and the metrics of `reward_loss`."""
    device = model.score.weight.device
    input_ids, attention_mask = (
        torch.from_numpy(array).to(device) for array in (batch.input_ids, batch.attention_mask)
    )
    chosen, rejected = model(input_ids, attention_mask).chunk(2)
    return reward_loss(chosen, rejected, center_coefficient=center_coefficient)


@torch.no_grad()
def evaluate_reward_model(
    model: RewardModel, loader: PreferenceLoader, max_batches: int | None = None
) -> dict[str, float]:
    """`loss`, `accuracy` and `margin` over the pairs of a loader, each once; every pair counts the same."""
    was_training = model.training
    model.eval()
    totals: Counter[str] = Counter()
    for batch in loader.one_pass(max_batches):
        B = len(batch.input_ids) // 2
        loss, metrics = reward_batch_loss(model, batch)
        totals.update({"pairs": B, "loss": loss.item() * B})
        totals.update({name: metrics[name] * B for name in ("accuracy", "margin")})
    model.train(was_training)
    return {name: totals[name] / totals["pairs"] for name in ("loss", "accuracy", "margin")}
