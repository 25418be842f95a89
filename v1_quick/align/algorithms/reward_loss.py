"""What trains a reward model: torch's `logsigmoid` of the difference of two scores, as trl's `RewardTrainer` has it.

The trainer computes this inside `compute_loss`, from a batch whose first half are the chosen replies.

    python -c "import torch; from v1_quick.align.algorithms.reward_loss import *; print(reward_loss(torch.tensor([2.0]), torch.tensor([1.0])))"
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid as log_sigmoid


def reward_loss(
    chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, center_coefficient: float = 0.0
) -> tuple[Tensor, dict[str, float]]:
    """Mean of -log σ(chosen - rejected - margin) + center_coefficient · (chosen + rejected)² over [B], and what trl logs."""
    difference = chosen - rejected
    loss = -log_sigmoid(difference if margin is None else difference - margin).mean()
    loss = loss + center_coefficient * torch.mean((chosen + rejected) ** 2)
    scores = torch.cat([chosen, rejected])
    metrics = {
        "accuracy": (difference > 0).to(difference.dtype).mean().item(),
        "margin": difference.mean().item(),
        "mean_reward": scores.mean().item(),
        "min_reward": scores.min().item(),
        "max_reward": scores.max().item(),
    }
    return loss, metrics
