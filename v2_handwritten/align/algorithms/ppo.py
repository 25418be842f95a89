"""Proximal policy optimization of completions: from scores to rewards, advantages, and the two clipped losses.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms", equation 7; advantages after Schulman et al. 2016, "High-
Dimensional Continuous Control Using Generalized Advantage Estimation", equation 16; for language models Ziegler et al.
2019 and Stiennon et al. 2020. What TRL 1.12 computes (`trl.experimental.ppo`), number for number. Theory: ppo.md.

Everything here is [B, T] over the T columns of the completions, padded on the right: column t is about the completion's token t, the
log-probability it was sampled with, and the value of the state before it.

Level 1: `PPOTrainer`, which does all of this inside `train()`. Level 3: the same over its own autograd; what has no gradient
is an array there.

    uv run python -c "import torch; from v2_handwritten.align.algorithms.ppo import *; print(generalized_advantages(torch.tensor([[0.0, 0.0, 1.0]]), torch.zeros(1, 3), torch.ones(1, 3).long()))"
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from v2_handwritten.models.log_probs import masked_mean

Mask = Int[Tensor, "B T"] | Bool[Tensor, "B T"]
Metrics = dict[str, float]


class Experience(NamedTuple):
    """What a rollout is worth, ready to be learned from: constants of the update."""

    log_probs: Float[Tensor, "B T"]  # of the policy that sampled
    values: Float[Tensor, "B T"]  # of the value model at that time
    advantages: Float[Tensor, "B T"]  # whitened
    returns: Float[Tensor, "B T"]  # what the value model should have said
    completion_mask: Mask

    def rows(self, rows: Int[Tensor, " N"]) -> "Experience":
        """The experience of some completions: a minibatch."""
        return Experience(*(field[rows] for field in self))


def value_mask(completion_mask: Mask) -> Mask:
    """The completion's tokens and one place more, where the row has one: the state after the last token.

    That state has a value, too, and it is there that the score is paid; see ppo.md.
    """
    after = torch.arange(completion_mask.shape[1], device=completion_mask.device) == completion_mask.sum(
        1, keepdim=True
    )
    return completion_mask.bool() | after


def penalize_missing_eos(
    scores: Float[Tensor, " B"], finished: Bool[Tensor, " B"], penalty: float | None
) -> Float[Tensor, " B"]:
    """`penalty` off the score of completions that did not end by themselves: the reward model has only seen ones that do."""
    return scores if penalty is None else torch.where(finished, scores, scores - penalty)


def token_kl(
    log_probs: Float[Tensor, "B T"],
    reference_log_probs: Float[Tensor, "B T"],
    completion_mask: Mask,
    kl_estimator: Literal["k1", "k3"] = "k1",
) -> Float[Tensor, "B T"]:
    """KL(policy ‖ reference) as estimated from the sampled token: log p - log p_ref ("k1"), which may be negative, or
    p_ref / p - 1 - log(p_ref / p) ("k3"), which may not. Both have the KL as their mean."""
    log_ratio = torch.where(completion_mask.bool(), log_probs - reference_log_probs, 0.0)
    return log_ratio if kl_estimator == "k1" else torch.exp(-log_ratio) - 1 + log_ratio


def token_rewards(
    log_probs: Float[Tensor, "B T"],
    reference_log_probs: Float[Tensor, "B T"],
    scores: Float[Tensor, " B"],
    completion_mask: Mask,
    kl_coef: float = 0.05,
    kl_estimator: Literal["k1", "k3"] = "k1",
) -> Float[Tensor, "B T"]:
    """A fine for every token that leaves the reference, `kl_coef` · `token_kl`, and the score when the completion is over.

    The sign decides everything: turned, the policy is paid for leaving.
    """
    kl = token_kl(log_probs, reference_log_probs, completion_mask, kl_estimator)
    rewards = -kl_coef * kl
    rows = torch.arange(len(rewards), device=rewards.device)
    # The state after the completion, or its last token.
    last = (value_mask(completion_mask).sum(1) - 1).clamp(min=0)
    rewards[rows, last] += scores
    return rewards


def whiten(x: Float[Tensor, "B T"], mask: Mask, shift_mean: bool = True) -> Float[Tensor, "B T"]:
    """Mean 0 (unless `shift_mean` is off) and variance 1 over the places that count; 0 elsewhere."""
    counted = mask.bool()
    mean = masked_mean(x, mask)
    n = counted.sum()
    variance = masked_mean((x - mean) ** 2, mask) * n / (n - 1).clamp(min=1)
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(counted, whitened if shift_mean else whitened + mean, 0.0)


def generalized_advantages(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Mask,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Advantages and returns. With the error of one step δ_t = r_t + γ V_{t+1} - V_t,

        A_t = δ_t + γλ A_{t+1},        R_t = A_t + V_t.

    mask: `value_mask(completion_mask)`. After the last place that counts there is nothing: whatever stands in the padding, it
    neither has a value nor sends an advantage back.
    """
    counted = mask.bool()
    rewards, values = torch.where(counted, rewards, 0.0), torch.where(counted, values, 0.0)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    errors = rewards + gamma * next_values - values
    advantages = torch.zeros_like(errors)
    advantage = errors.new_zeros(len(errors))
    for t in reversed(range(errors.shape[1])):
        advantage = errors[:, t] + gamma * lam * advantage
        advantages[:, t] = advantage
    return advantages, advantages + values


@torch.no_grad()
def make_experience(
    log_probs: Float[Tensor, "B T"],
    reference_log_probs: Float[Tensor, "B T"],
    scores: Float[Tensor, " B"],
    values: Float[Tensor, "B T"],
    completion_mask: Mask,
    kl_coef: float = 0.05,
    kl_estimator: Literal["k1", "k3"] = "k1",
    gamma: float = 1.0,
    lam: float = 0.95,
    whiten_rewards: bool = False,
) -> tuple[Experience, Metrics]:
    """All that happens between the rollout and the first gradient, in TRL's order: returns are made before whitening."""
    judged = value_mask(completion_mask)
    rewards = token_rewards(log_probs, reference_log_probs, scores, completion_mask, kl_coef, kl_estimator)
    kl = token_kl(log_probs, reference_log_probs, completion_mask, kl_estimator)
    metrics = {
        "objective/kl": kl.sum(1).mean().item(),  # nats a completion
        "objective/entropy": (-log_probs * completion_mask).sum(1).mean().item(),
        "objective/non_score_reward": (-kl_coef * kl).sum(1).mean().item(),
        "objective/rlhf_reward": rewards.sum(1).mean().item(),
        "objective/scores": scores.mean().item(),
    }
    if whiten_rewards:
        rewards = whiten(rewards, judged, shift_mean=False)
    advantages, returns = generalized_advantages(rewards, values, judged, gamma, lam)
    advantages = whiten(advantages, completion_mask)
    return Experience(log_probs, values, advantages, returns, completion_mask), metrics


def policy_loss(
    new: Float[Tensor, "B T"],
    old: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Mask,
    cliprange: float = 0.2,
) -> tuple[Float[Tensor, ""], Metrics]:
    """-min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) with ρ = p_new / p_old, averaged over the completion's tokens.

    Both log-probabilities must be of the distribution that was sampled from: divided by the same temperature.
    """
    log_ratio = torch.where(mask.bool(), new - old, 0.0)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    loss = masked_mean(torch.maximum(plain, clipped), mask)
    with torch.no_grad():
        metrics = {
            "loss/policy": loss.item(),
            "policy/approxkl": 0.5 * masked_mean(log_ratio**2, mask).item(),  # TRL also counts padding here
            "policy/clipfrac": masked_mean((clipped > plain).to(ratio.dtype), mask).item(),
            "val/ratio": masked_mean(ratio, mask).item(),  # and here
        }
    return loss, metrics


def value_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    mask: Mask,
    cliprange_value: float = 0.2,
) -> tuple[Float[Tensor, ""], Metrics]:
    """½ max((V - R)², (clip(V, V_old ± ε) - R)²), averaged over `value_mask(completion_mask)`."""
    clipped_values = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    plain = (values - returns) ** 2
    clipped = (clipped_values - returns) ** 2
    loss = 0.5 * masked_mean(torch.maximum(plain, clipped), mask)
    with torch.no_grad():
        share = masked_mean((clipped > plain).to(plain.dtype), mask).item()
    return loss, {"loss/value": loss.item(), "val/clipfrac": share}


def ppo_loss(
    new: Float[Tensor, "B T"],
    new_values: Float[Tensor, "B T"],
    experience: Experience,
    cliprange: float = 0.2,
    cliprange_value: float = 0.2,
    vf_coef: float = 0.1,
) -> tuple[Float[Tensor, ""], Metrics]:
    """The loss of both models on some rows of experience: policy + `vf_coef` · value."""
    old, old_values, advantages, returns, mask = experience
    policy, metrics = policy_loss(new, old, advantages, mask, cliprange)
    value, value_metrics = value_loss(new_values, old_values, returns, value_mask(mask), cliprange_value)
    return policy + vf_coef * value, metrics | value_metrics
