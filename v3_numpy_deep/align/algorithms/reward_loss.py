"""What trains a reward model: the chosen completion should get a higher score than the rejected one.

The model of Bradley & Terry (1952): P(chosen beats rejected) = σ(r_chosen - r_rejected), and the loss is -log of it, as in
Stiennon et al. 2020 and Ouyang et al. 2022, equation 1. Two options of practice: a margin, by which the score of a much
better completion must be higher (Touvron et al. 2023, "Llama 2", equation 2), and a pull of both scores towards zero, which
the loss leaves free (Eisenstein et al. 2023). Derivation in v2_handwritten/align/algorithms/reward_loss.md.

Level 1: the loss inside trl's `RewardTrainer`. Level 2: the same over torch.

    uv run python -c "from v3_numpy_deep.align.algorithms.reward_loss import *; print(reward_loss(Tensor([2.0]), Tensor([1.0])))"
"""

import numpy as np
from jaxtyping import Float

from v3_numpy_deep.autograd import Array, Tensor
from v3_numpy_deep.autograd import operations as ops


def log_sigmoid(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log σ(x) = -log(e⁰ + e⁻ˣ), without overflow for any x;  ∂x = g σ(-x)

    At 0, where every pair stands before the first step of DPO, the derivative is 1/2.
    """
    return ops.log_sigmoid(x)


# The loss is a tensor without axes; the shape checker of the tests would take a shape in this tuple for level 2's.
def reward_loss(
    chosen: Float[Tensor, "B"],
    rejected: Float[Tensor, "B"],
    margin: Float[Array, "B"] | None = None,
    center_rewards_coefficient: float | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Mean of -log σ(chosen - rejected - margin) + center_rewards_coefficient · (chosen + rejected)², and what trl logs.

    Metrics, of the scores without margin: `accuracy` (share of pairs in the right order; a tie is not), `margin` (mean
    difference), and the mean, smallest and largest score.
    """
    assert len(chosen) == len(rejected) > 0, "as many chosen as rejected scores, and at least one pair"
    difference = chosen - rejected
    loss = -log_sigmoid(difference if margin is None else difference - margin).mean()
    if center_rewards_coefficient:
        loss = loss + center_rewards_coefficient * ((chosen + rejected) ** 2).mean()
    scores = np.concatenate([chosen.data, rejected.data])
    metrics = {
        "accuracy": (difference.data > 0).mean().item(),
        "margin": difference.data.mean().item(),
        "mean_reward": scores.mean().item(),
        "min_reward": scores.min().item(),
        "max_reward": scores.max().item(),
    }
    return loss, metrics
