"""Group relative policy optimization: PPO whose baseline is the mean reward of several completions to the same prompt.

Shao et al. 2024, "DeepSeekMath", equations 3 (objective) and 4 (KL); no value model is trained. The ways to average over
tokens are those of the paper ("grpo"), of Liu et al. 2025 ("dr_grpo"), of Yu et al. 2025 ("dapo"), and the mean over the
tokens of a batch ("bnpo"), as TRL 1.12 computes them. Derivations in v2_handwritten/align/algorithms/grpo.md.

Level 1: `trl.GRPOTrainer`. Level 2: the same over torch. Here the signatures tell what learns: only `new` is a tensor
with a history, all else is an array.

    uv run python -c "import numpy as np; from v3_numpy_deep.align.algorithms.grpo import *; print(group_advantages(np.array([1.0, 0.0, 0.5, 0.5]), 2))"
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from v3_numpy_deep.autograd import Array, Tensor
from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.models.log_probs import masked_mean

_EPSILON = (
    1e-4  # TRL's: a group of equal rewards has a deviation of 0, and its advantages are 0 / _EPSILON = 0
)

Mask = Int[Array, "B T"] | Bool[Array, "B T"]
Metrics = dict[str, float]
# Losses are annotated `Tensor`, not `Float[Tensor, ""]`: inside a tuple, beartype takes that for the type of level 2.


def group_advantages(
    rewards: Float[Array, " N"],
    num_generations: int,
    scale_rewards: Literal["group", "batch", "none"] = "group",
) -> Float[Array, " N"]:
    """How much better each completion is than the mean of its group: `num_generations` completions to one prompt, next to each other.

    scale_rewards: the difference is divided by the standard deviation (n - 1 in the denominator) of the group or of the
    whole batch; "none" leaves it, as Liu et al. 2025 propose, so that an easy prompt does not count for more. A reward of NaN does not
    apply: it counts in no mean and no deviation, and its advantage is 0.
    """
    assert len(rewards) % num_generations == 0, f"{len(rewards)} rewards are no groups of {num_generations}"
    groups = rewards.reshape(-1, num_generations)
    advantages = groups - _mean(groups, axis=1)
    if scale_rewards == "group":
        advantages = advantages / (_deviation(groups, axis=1) + _EPSILON)
    elif scale_rewards == "batch":
        advantages = advantages / (_deviation(groups, axis=None) + _EPSILON)
    return np.nan_to_num(advantages, nan=0.0).ravel()


def _mean(rewards: Float[Array, "P G"], axis: int | None) -> Float[Array, "..."]:
    """Without those of NaN; NumPy's nanmean would warn where there is nothing else."""
    count = np.count_nonzero(~np.isnan(rewards), axis, keepdims=True)
    return np.nansum(rewards, axis, keepdims=True) / np.maximum(count, 1).astype(rewards.dtype)


def _deviation(rewards: Float[Array, "P G"], axis: int | None) -> Float[Array, "..."]:
    """Their standard deviation, without those of NaN."""
    squares = (rewards - _mean(rewards, axis)) ** 2
    count = np.count_nonzero(~np.isnan(rewards), axis, keepdims=True)
    return np.sqrt(np.nansum(squares, axis, keepdims=True) / np.maximum(count - 1, 1).astype(rewards.dtype))


def kl_estimate(new: Float[Tensor, "B T"], reference: Float[Array, "B T"]) -> Float[Tensor, "B T"]:
    """KL(new ‖ reference) from one token sampled from `new`: r - 1 - log r with r = p_reference / p_new ("k3", equation 4).

    Its mean over samples is the KL, and it is never negative. Mind the direction: the reference stands in the numerator.
    """
    log_ratio = reference - new
    return ops.exp(log_ratio) - log_ratio - 1


def grpo_loss(
    new: Float[Tensor, "B T"],
    old: Float[Array, "B T"] | None,
    reference: Float[Array, "B T"] | None,
    advantages: Float[Array, " B"],
    mask: Mask,
    beta: float = 0.0,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo",
    max_completion_length: int | None = None,
    num_items: int | None = None,
    use_bias_correction_kl: bool = True,
) -> tuple[Tensor, Metrics]:
    """The clipped objective with its KL penalty, as a loss, and the metrics TRL logs.

    new, old, reference: log-probabilities in nats of the completion's tokens under the policy that is trained, the one that
    sampled (None: the same one, the first step after sampling), and the one to stay close to (needed where beta > 0).
    mask: 1 on the completion's tokens, the one that ends it included. max_completion_length: the divisor of "dr_grpo".
    num_items: the tokens of the whole batch, where this is a part of it; the divisor of "dapo".
    epsilon, epsilon_high: how far a ratio may fall and rise (None: as far). use_bias_correction_kl: weigh each KL estimate by the ratio, so that its gradient, too, is that of the KL (TRL's default; grpo.md).
    """
    counted = mask.astype(bool)
    epsilon_high = epsilon if epsilon_high is None else epsilon_high
    old = new.data if old is None else old
    # Whatever stands on padding, its ratio is 1 and its gradient 0.
    ratio = ops.exp(ops.where(counted, new - old, 0.0))
    clipped_ratio = ops.clip(ratio, 1 - epsilon, 1 + epsilon_high)
    advantage = advantages[:, None]  # every token of a completion has the same advantage
    token_losses = -ops.minimum(ratio * advantage, clipped_ratio * advantage)

    metrics = _clip_metrics(ratio.data, advantage, mask, epsilon, epsilon_high)
    if beta:
        assert reference is not None, "a KL penalty needs the reference's log-probabilities"
        kl = kl_estimate(ops.where(counted, new, 0.0), np.where(counted, reference, 0))
        kl = kl * ratio if use_bias_correction_kl else kl
        token_losses = token_losses + beta * kl
        metrics["kl"] = masked_mean(kl.detach(), mask).item()
    return _average(token_losses, mask, loss_type, max_completion_length, num_items), metrics


def _average(
    token_losses: Float[Tensor, "B T"],
    mask: Mask,
    loss_type: str,
    max_completion_length: int | None,
    num_items: int | None,
) -> Float[Tensor, ""]:
    """One number from the losses of the tokens. What differs is what a token of a long completion weighs; see grpo.md."""
    counted = mask.astype(token_losses.dtype)
    if loss_type == "grpo":  # each completion the same, so a token of a long one less
        return ((token_losses * counted).sum(1) / np.maximum(counted.sum(1), 1)).mean()
    if loss_type == "bnpo":  # each token of this batch the same
        return masked_mean(token_losses, mask)
    if loss_type == "dr_grpo":  # each token the same, whatever else is in the batch
        assert max_completion_length is not None, "dr_grpo divides by the length a completion may have"
        return (token_losses * counted).sum() / (len(counted) * max_completion_length)
    if loss_type == "dapo":  # each token of the whole batch the same, also where this is a part of it
        tokens = float(counted.sum()) if num_items is None else num_items
        return (token_losses * counted).sum() / max(tokens, 1)
    raise ValueError(f"there is no loss type {loss_type!r}; choose grpo, bnpo, dr_grpo or dapo")


def _clip_metrics(
    ratio: Float[Array, "B T"],
    advantage: Float[Array, "B 1"],
    mask: Mask,
    epsilon: float,
    epsilon_high: float,
) -> Metrics:
    """The share of tokens that clipping leaves without a gradient, below and above."""
    low = Tensor(((ratio < 1 - epsilon) & (advantage < 0)).astype(ratio.dtype))
    high = Tensor(((ratio > 1 + epsilon_high) & (advantage > 0)).astype(ratio.dtype))
    return {
        "clip_ratio/low_mean": masked_mean(low, mask).item(),
        "clip_ratio/high_mean": masked_mean(high, mask).item(),
        "clip_ratio/region_mean": masked_mean(low + high, mask).item(),
    }
