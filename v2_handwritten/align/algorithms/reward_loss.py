"""What trains a reward model: the chosen completion should get a higher score than the rejected one.

The model of Bradley & Terry (1952): P(chosen beats rejected) = σ(r_chosen - r_rejected), and the loss is -log of it, as in
Stiennon et al. 2020 and Ouyang et al. 2022, equation 1. Two options of practice: a margin, by which the score of a much
better completion must be higher (Touvron et al. 2023, "Llama 2", equation 2), and a pull of both scores towards zero, which
the loss leaves free (Eisenstein et al. 2023). Derivation in reward_loss.md.

Level 1: the loss inside trl's `RewardTrainer`. Level 3: the same over its own autograd.

    uv run python -c "import torch; from v2_handwritten.align.algorithms.reward_loss import *; print(reward_loss(torch.tensor([2.0]), torch.tensor([1.0])))"
"""

import torch
from jaxtyping import Float
from torch import Tensor


def log_sigmoid(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log σ(x) = -log(e⁰ + e⁻ˣ), without overflow for any x.

    The usual min(x, 0) - log(1 + e^-|x|) has the same values, but its derivative at 0, which is 1/2, depends on how the minimum is
    written: autograd finds 0 with `relu`, 1 with `clamp`. At 0 stands every pair before the first step of DPO.
    """
    return -torch.logaddexp(torch.zeros_like(x), -x)


def reward_loss(
    chosen: Float[Tensor, "B"],
    rejected: Float[Tensor, "B"],
    margin: Float[Tensor, "B"] | None = None,
    center_rewards_coefficient: float | None = None,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Mean of -log σ(chosen - rejected - margin) + center_rewards_coefficient · (chosen + rejected)², and what trl logs.

    Metrics, of the scores without margin: `accuracy` (share of pairs in the right order; a tie is not), `margin` (mean
    difference), and the mean, smallest and largest score.
    """
    assert len(chosen) == len(rejected) > 0, "as many chosen as rejected scores, and at least one pair"
    difference = chosen - rejected
    loss = -log_sigmoid(difference if margin is None else difference - margin).mean()
    if center_rewards_coefficient:
        loss = loss + center_rewards_coefficient * (chosen + rejected).square().mean()
    scores = torch.cat([chosen, rejected]).detach()
    metrics = {
        "accuracy": (difference > 0).to(scores.dtype).mean().item(),
        "margin": difference.detach().mean().item(),
        "mean_reward": scores.mean().item(),
        "min_reward": scores.min().item(),
        "max_reward": scores.max().item(),
    }
    return loss, metrics
