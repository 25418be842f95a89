"""Two completions of one prompt, from their scores to the loss, as in v2_handwritten/align/algorithms/ppo.md."""

import torch

from tests.worked import agrees
from v2_handwritten.align.algorithms.ppo import (
    generalized_advantages,
    make_experience,
    policy_loss,
    ppo_loss,
    token_kl,
    token_rewards,
    value_loss,
    value_mask,
)

PAGE = "v2_handwritten/align/algorithms/ppo.md"

# A: "it is red <end>", B: "blue <end>", in T = 5 columns; what stands on padding must not matter.
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
POLICY = torch.tensor([[-1.0, -0.2, -0.9, -0.1, 7], [-0.5, -0.3, 7, 7, 7]])  # log π(token), when sampled
REFERENCE = torch.tensor([[-1.1, -0.2, -1.1, -0.1, 7], [-1.5, -0.3, 7, 7, 7]])
SCORES = torch.tensor([1.0, -1.0])
VALUES = torch.tensor([[0.0, 0.1, 0.2, 0.6, 0.8], [0.0, -0.4, -0.8, 7, 7]])
KL_COEF, GAMMA, LAMBDA, EPSILON = 0.1, 1.0, 0.5, 0.2

RATIO = torch.tensor([[1.1, 1.3, 1.0, 0.7, 1], [0.7, 1.3, 1, 1, 1]])  # π_new / π_old, after some steps
NEW_VALUES = torch.tensor([[0.3, 0.5, 0.5, 0.8, 0.9], [-0.3, -0.5, -0.9, 7, 7]])

TOKENS, STATES = MASK.bool(), value_mask(MASK).bool()


def shown(x: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    return x.where(counted, torch.nan)


def test_rewards_of_tokens() -> None:
    agrees(PAGE, "log π", shown(POLICY, TOKENS))
    agrees(PAGE, "log π_ref", shown(REFERENCE, TOKENS))
    agrees(PAGE, "KL, k1", shown(token_kl(POLICY, REFERENCE, MASK), TOKENS))
    rewards = token_rewards(POLICY, REFERENCE, SCORES, MASK, KL_COEF)
    agrees(PAGE, "reward", shown(rewards, STATES))


def test_advantages_and_returns() -> None:
    rewards = token_rewards(POLICY, REFERENCE, SCORES, MASK, KL_COEF)
    agrees(PAGE, "value", shown(VALUES, STATES))
    errors, _ = generalized_advantages(rewards, VALUES, STATES, GAMMA, lam=0.0)
    agrees(PAGE, "δ", shown(errors, STATES))
    advantages, returns = generalized_advantages(rewards, VALUES, STATES, GAMMA, LAMBDA)
    agrees(PAGE, "advantage", shown(advantages, STATES))
    agrees(PAGE, "return", shown(returns, STATES))
    experience, _ = make_experience(POLICY, REFERENCE, SCORES, VALUES, MASK, KL_COEF, gamma=GAMMA, lam=LAMBDA)
    agrees(PAGE, "whitened", shown(experience.advantages, TOKENS))
    assert torch.equal(experience.returns[STATES], returns[STATES])


def test_the_clipped_objective_and_its_gradient() -> None:
    experience, _ = make_experience(POLICY, REFERENCE, SCORES, VALUES, MASK, KL_COEF, gamma=GAMMA, lam=LAMBDA)
    agrees(PAGE, "ratio", shown(RATIO, TOKENS))
    advantages = experience.advantages
    agrees(PAGE, "ratio · A", shown(RATIO * advantages, TOKENS))
    agrees(PAGE, "clipped ratio · A", shown(RATIO.clamp(1 - EPSILON, 1 + EPSILON) * advantages, TOKENS))
    new = (POLICY + RATIO.log()).requires_grad_()
    loss, _ = policy_loss(new, POLICY, advantages, MASK, EPSILON)
    loss.backward()
    agrees(PAGE, "gradient", shown(new.grad, TOKENS))  # type: ignore[arg-type]


def test_the_loss_of_both_models() -> None:
    experience, _ = make_experience(POLICY, REFERENCE, SCORES, VALUES, MASK, KL_COEF, gamma=GAMMA, lam=LAMBDA)
    agrees(PAGE, "new value", shown(NEW_VALUES, STATES))
    clipped = NEW_VALUES.clamp(VALUES - EPSILON, VALUES + EPSILON)
    agrees(PAGE, "clipped value", shown(clipped, STATES))
    errors = torch.maximum((NEW_VALUES - experience.returns) ** 2, (clipped - experience.returns) ** 2)
    agrees(PAGE, "larger squared error", shown(errors, STATES))
    new = POLICY + RATIO.log()
    policy, _ = policy_loss(new, POLICY, experience.advantages, MASK, EPSILON)
    value, _ = value_loss(NEW_VALUES, VALUES, experience.returns, STATES, EPSILON)
    both, _ = ppo_loss(new, NEW_VALUES, experience, EPSILON, EPSILON, vf_coef=0.1)
    agrees(PAGE, "loss", [[policy], [value], [both]])
