"""Proximal policy optimization of completions: from scores to rewards, advantages, and the two clipped losses.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms", equation 7; advantages after Schulman et al. 2016, "High-
Dimensional Continuous Control Using Generalized Advantage Estimation", equation 16; for language models Ziegler et al.
2019 and Stiennon et al. 2020. What TRL 1.12 computes (`trl.experimental.ppo`), number for number. Theory:
v2_handwritten/align/algorithms/ppo.md.

Everything here is [B, T] over the T columns of the completions, padded on the right: column t is about the completion's token t, the
log-probability it was sampled with, and the value of the state before it.

Level 1: `PPOTrainer`, which does all of this inside `train()`. Level 2: the same over torch. Here the signatures tell what
learns: only the new log-probabilities and the new values are tensors with a history, all else is an array.

    uv run python -c "import numpy as np; from v3_numpy_deep.align.algorithms.ppo import *; print(generalized_advantages(np.array([[0.0, 0.0, 1.0]]), np.zeros((1, 3)), np.ones((1, 3), int)))"
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from v3_numpy_deep.autograd import Array, Tensor, no_grad
from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.models.log_probs import masked_mean

Mask = Int[Array, "B T"] | Bool[Array, "B T"]
Metrics = dict[str, float]
# Losses are annotated `Tensor`, not `Float[Tensor, ""]`: inside a tuple, beartype takes that for the type of level 2.


class Experience(NamedTuple):
    """What a rollout is worth, ready to be learned from: constants of the update."""

    log_probs: Float[Array, "B T"]  # of the policy that sampled
    values: Float[Array, "B T"]  # of the value model at that time
    advantages: Float[Array, "B T"]  # whitened
    returns: Float[Array, "B T"]  # what the value model should have said
    completion_mask: Mask

    def rows(self, rows: Int[Array, " N"]) -> "Experience":
        """The experience of some completions: a minibatch."""
        return Experience(*(field[rows] for field in self))


def value_mask(completion_mask: Mask) -> Mask:
    """The completion's tokens and one place more, where the row has one: the state after the last token.

    That state has a value, too, and it is there that the score is paid; see ppo.md.
    """
    after = np.arange(completion_mask.shape[1]) == completion_mask.sum(1, keepdims=True)
    return completion_mask.astype(bool) | after


def penalize_missing_eos(
    scores: Float[Array, " B"], finished: Bool[Array, " B"], penalty: float | None
) -> Float[Array, " B"]:
    """`penalty` off the score of completions that did not end by themselves: the reward model has only seen ones that do."""
    return scores if penalty is None else np.where(finished, scores, scores - penalty).astype(scores.dtype)


def token_kl(
    log_probs: Float[Array, "B T"],
    reference_log_probs: Float[Array, "B T"],
    completion_mask: Mask,
    kl_estimator: Literal["k1", "k3"] = "k1",
) -> Float[Array, "B T"]:
    """KL(policy ‖ reference) as estimated from the sampled token: log p - log p_ref ("k1"), which may be negative, or
    p_ref / p - 1 - log(p_ref / p) ("k3"), which may not. Both have the KL as their mean."""
    log_ratio = np.where(completion_mask.astype(bool), log_probs - reference_log_probs, 0)
    return log_ratio if kl_estimator == "k1" else np.exp(-log_ratio) - 1 + log_ratio


def token_rewards(
    log_probs: Float[Array, "B T"],
    reference_log_probs: Float[Array, "B T"],
    scores: Float[Array, " B"],
    completion_mask: Mask,
    kl_coef: float = 0.05,
    kl_estimator: Literal["k1", "k3"] = "k1",
) -> Float[Array, "B T"]:
    """A fine for every token that leaves the reference, `kl_coef` · `token_kl`, and the score when the completion is over.

    The sign decides everything: turned, the policy is paid for leaving.
    """
    kl = token_kl(log_probs, reference_log_probs, completion_mask, kl_estimator)
    rewards = -kl_coef * kl
    # The state after the completion, or its last token.
    last = np.maximum(value_mask(completion_mask).sum(1) - 1, 0)
    rewards[np.arange(len(rewards)), last] += scores
    return rewards


def whiten(x: Float[Array, "B T"], mask: Mask, shift_mean: bool = True) -> Float[Array, "B T"]:
    """Mean 0 (unless `shift_mean` is off) and variance 1 over the places that count; 0 elsewhere."""
    counted = mask.astype(bool)
    values = x[counted]  # picked out, so that padding cannot get in
    mean, variance = values.mean(), values.var() * values.size / max(values.size - 1, 1)
    whitened = (x - mean) / np.sqrt(variance + x.dtype.type(1e-8))
    return np.where(counted, whitened if shift_mean else whitened + mean, 0)


def generalized_advantages(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T"],
    mask: Mask,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Advantages and returns. With the error of one step δ_t = r_t + γ V_{t+1} - V_t,

        A_t = δ_t + γλ A_{t+1},        R_t = A_t + V_t.

    mask: `value_mask(completion_mask)`. After the last place that counts there is nothing: whatever stands in the padding, it
    neither has a value nor sends an advantage back.

    Level 2 walks the recursion from the end. Unrolled, A_t = Σ_{s≥t} (γλ)^(s-t) δ_s is a product with a triangular matrix:
    T² instead of T numbers, but one call, and for completions of some hundred tokens the faster way in NumPy.
    """
    counted = mask.astype(bool)
    rewards, values = np.where(counted, rewards, 0), np.where(counted, values, 0)
    next_values = np.concatenate([values[:, 1:], np.zeros_like(values[:, :1])], axis=1)
    errors = rewards + gamma * next_values - values
    steps = np.arange(errors.shape[1])
    # [s, t]: what δ_s gives to A_t.
    later = np.tril(float(gamma * lam) ** np.maximum(steps[:, None] - steps, 0))
    advantages = errors @ later.astype(errors.dtype)
    return advantages, advantages + values


def make_experience(
    log_probs: Float[Array, "B T"],
    reference_log_probs: Float[Array, "B T"],
    scores: Float[Array, " B"],
    values: Float[Array, "B T"],
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
    old: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Mask,
    cliprange: float = 0.2,
) -> tuple[Tensor, Metrics]:
    """-min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) with ρ = p_new / p_old, averaged over the completion's tokens.

    Both log-probabilities must be of the distribution that was sampled from: divided by the same temperature.
    """
    log_ratio = ops.where(mask.astype(bool), new - old, 0.0)
    ratio = ops.exp(log_ratio)
    plain = -advantages * ratio
    clipped = -advantages * ops.clip(ratio, 1 - cliprange, 1 + cliprange)
    loss = masked_mean(ops.maximum(plain, clipped), mask)
    with no_grad():
        metrics = {
            "loss/policy": loss.item(),
            "policy/approxkl": 0.5 * masked_mean(log_ratio**2, mask).item(),  # TRL also counts padding here
            "policy/clipfrac": masked_mean(_larger(clipped, plain), mask).item(),
            "val/ratio": masked_mean(ratio, mask).item(),  # and here
        }
    return loss, metrics


def value_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Array, "B T"],
    returns: Float[Array, "B T"],
    mask: Mask,
    cliprange_value: float = 0.2,
) -> tuple[Tensor, Metrics]:
    """½ max((V - R)², (clip(V, V_old ± ε) - R)²), averaged over `value_mask(completion_mask)`."""
    clipped_values = ops.maximum(values, old_values - cliprange_value)
    clipped_values = ops.minimum(clipped_values, old_values + cliprange_value)
    plain = (values - returns) ** 2
    clipped = (clipped_values - returns) ** 2
    loss = 0.5 * masked_mean(ops.maximum(plain, clipped), mask)
    share = masked_mean(_larger(clipped, plain), mask).item()
    return loss, {"loss/value": loss.item(), "val/clipfrac": share}


def ppo_loss(
    new: Float[Tensor, "B T"],
    new_values: Float[Tensor, "B T"],
    experience: Experience,
    cliprange: float = 0.2,
    cliprange_value: float = 0.2,
    vf_coef: float = 0.1,
) -> tuple[Tensor, Metrics]:
    """The loss of both models on some rows of experience: policy + `vf_coef` · value."""
    old, old_values, advantages, returns, mask = experience
    policy, metrics = policy_loss(new, old, advantages, mask, cliprange)
    value, value_metrics = value_loss(new_values, old_values, returns, value_mask(mask), cliprange_value)
    return policy + vf_coef * value, metrics | value_metrics


def _larger(a: Float[Tensor, "B T"], b: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """1 where a > b, else 0."""
    return Tensor((a.data > b.data).astype(a.dtype))
