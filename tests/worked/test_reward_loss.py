"""Three pairs of scores, as in v2_handwritten/align/algorithms/reward_loss.md."""

import torch

from tests.worked import agrees
from v2_handwritten.align.algorithms.reward_loss import log_sigmoid, reward_loss

PAGE = "v2_handwritten/align/algorithms/reward_loss.md"

CHOSEN = torch.tensor([2.0, 0.5, -1.0])
REJECTED = torch.tensor([1.0, 0.5, 1.0])


def gradients(**options: object) -> torch.Tensor:
    """Of the loss by both scores of each pair, [3, 2]."""
    scores = [scores.clone().requires_grad_() for scores in (CHOSEN, REJECTED)]
    reward_loss(*scores, **options)[0].backward()  # type: ignore[arg-type]
    return torch.stack([score.grad for score in scores], dim=1)  # type: ignore[misc]


def test_the_loss_of_each_pair_and_its_mean() -> None:
    d = CHOSEN - REJECTED
    losses = -log_sigmoid(d)
    agrees(PAGE, "pair", torch.stack([CHOSEN, REJECTED, d, torch.sigmoid(d), losses], dim=1))
    loss, metrics = reward_loss(CHOSEN, REJECTED)
    agrees(PAGE, "metric", [[loss], *([value] for value in metrics.values())])


def test_the_gradient_weighs_a_pair_by_the_probability_of_the_wrong_order() -> None:
    weights = torch.sigmoid(REJECTED - CHOSEN)
    agrees(PAGE, "gradient", torch.column_stack([weights, gradients()]))


def test_a_margin_and_a_pull_to_the_center() -> None:
    margin = torch.tensor([1.0, 0.0, 0.0])
    options = {"margin": margin}, {"center_rewards_coefficient": 0.1}
    agrees(PAGE, "gradient, with", torch.cat([gradients(**each) for each in options], dim=1))
    losses = [reward_loss(CHOSEN, REJECTED, **each)[0] for each in options]  # type: ignore[arg-type]
    agrees(PAGE, "loss, with", [[loss] for loss in losses])
