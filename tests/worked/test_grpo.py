"""Groups of four completions, as in v2_handwritten/align/algorithms/grpo.md."""

import torch

from tests.worked import agrees
from v2_handwritten.align.algorithms.grpo import group_advantages, grpo_loss, kl_estimate

PAGE = "v2_handwritten/align/algorithms/grpo.md"

# Four completions of each of three questions.
REWARDS = torch.tensor([[1.0, 0.5, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
# The completions of the first question have 2, 4, 2 and 4 tokens.
MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])
RATIO = torch.tensor([[1.3, 1.1, 1, 1], [1.0, 1, 1, 1], [0.7, 0.9, 1, 1], [1.3, 1, 1, 1]])
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")
# num_items: as if this were half of a batch of 24 tokens
OPTIONS = {"max_completion_length": 8, "num_items": 24}


def test_advantages_of_a_group() -> None:
    agrees(PAGE, "reward", REWARDS)
    centered = group_advantages(REWARDS.flatten(), 4, "none")
    agrees(PAGE, "minus the mean", centered.view(3, 4))
    agrees(PAGE, "advantage", group_advantages(REWARDS.flatten(), 4).view(3, 4))


def test_the_clipped_loss_of_each_token_and_its_gradient() -> None:
    advantages = group_advantages(REWARDS[0], 4)
    old = torch.full((4, 4), -1.0)
    new = (old + RATIO.log()).requires_grad_()
    loss, _ = grpo_loss(new, old, None, advantages, MASK, loss_type="bnpo")
    loss.backward()
    agrees(PAGE, "ratio", RATIO.where(MASK.bool(), torch.nan))
    token_losses = [
        [grpo_loss(new[i : i + 1, t : t + 1], old[i : i + 1, t : t + 1], None, advantages[i : i + 1],
                   MASK[i : i + 1, t : t + 1])[0].detach() for t in range(4)]
        for i in range(4)
    ]  # fmt: skip
    agrees(PAGE, "token loss", torch.tensor(token_losses).where(MASK.bool(), torch.nan))
    agrees(PAGE, "gradient, bnpo", new.grad.where(MASK.bool(), torch.nan))  # type: ignore[union-attr]


def test_four_ways_to_average() -> None:
    advantages = group_advantages(REWARDS[0], 4)
    old = torch.full((4, 4), -1.0)
    rows = []
    for loss_type in LOSS_TYPES:
        loss, _ = grpo_loss(old + RATIO.log(), old, None, advantages, MASK, loss_type=loss_type, **OPTIONS)
        # An advantage of 1 and a ratio of 1 everywhere: the gradient is minus the weight of a token.
        new = torch.zeros(4, 4, requires_grad=True)
        grpo_loss(new, None, None, torch.ones(4), MASK, loss_type=loss_type, **OPTIONS)[0].backward()
        rows.append([-new.grad[0, 0], -new.grad[1, 0], loss])  # type: ignore[index]
    agrees(PAGE, "loss_type", rows)


def test_two_estimates_of_the_kl_and_one_that_is_turned_around() -> None:
    policy, reference = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.25, 0.3, 0.45]])
    new, fixed = policy.log(), reference.log()
    estimates = torch.cat([new - fixed, kl_estimate(new, fixed), kl_estimate(fixed, new)])
    means = (estimates * policy).sum(1, keepdim=True)
    agrees(PAGE, "estimate", torch.cat([estimates, means], dim=1))
    assert torch.isclose(means[0], means[1])
