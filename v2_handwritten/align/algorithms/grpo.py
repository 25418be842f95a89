"""Group relative policy optimization: PPO whose baseline is the mean reward of several completions to the same prompt.

Shao et al. 2024, "DeepSeekMath", equations 3 (objective) and 4 (KL); no value model is trained. The ways to average over
tokens are those of the paper ("grpo"), of Liu et al. 2025 ("dr_grpo"), of Yu et al. 2025 ("dapo"), and the mean over the
tokens of a batch ("bnpo"), as TRL 1.12 computes them. Derivations in grpo.md.

Level 1: `trl.GRPOTrainer`. Level 3: the same over its own autograd; what has no gradient is an array there.

    uv run python -c "import torch; from v2_handwritten.align.algorithms.grpo import *; print(group_advantages(torch.tensor([1.0, 0.0, 0.5, 0.5]), 2))"
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from v2_handwritten.models.log_probs import masked_mean

_EPSILON = (
    1e-4  # TRL's: a group of equal rewards has a deviation of 0, and its advantages are 0 / _EPSILON = 0
)

Mask = Int[Tensor, "B T"] | Bool[Tensor, "B T"]
Metrics = dict[str, float]


def group_advantages(
    rewards: Float[Tensor, " N"],
    num_generations: int,
    scale_rewards: Literal["group", "batch", "none"] = "group",
) -> Float[Tensor, " N"]:
    """How much better each completion is than the mean of its group: `num_generations` completions to one prompt, next to each other.

    scale_rewards: the difference is divided by the standard deviation (n - 1 in the denominator) of the group or of the
    whole batch; "none" leaves it, as Liu et al. 2025 propose, so that an easy prompt does not count for more. A reward of NaN does not
    apply: it counts in no mean and no deviation, and its advantage is 0.
    """
    assert len(rewards) % num_generations == 0, f"{len(rewards)} rewards are no groups of {num_generations}"
    groups = rewards.view(-1, num_generations)
    advantages = groups - groups.nanmean(dim=1, keepdim=True)
    if scale_rewards == "group":
        advantages = advantages / (_deviation(groups, dim=1) + _EPSILON)
    elif scale_rewards == "batch":
        advantages = advantages / (_deviation(groups, dim=(0, 1)) + _EPSILON)
    return advantages.nan_to_num(nan=0.0).flatten()


def _deviation(rewards: Float[Tensor, "P G"], dim: int | tuple[int, ...]) -> Float[Tensor, "..."]:
    """Their standard deviation, without those of NaN."""
    squares = (rewards - rewards.nanmean(dim, keepdim=True)).square()
    count = rewards.isnan().logical_not().sum(dim, keepdim=True)
    return torch.sqrt(squares.nansum(dim, keepdim=True) / (count - 1).clamp(min=1))


def kl_estimate(new: Float[Tensor, "B T"], reference: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """KL(new ‖ reference) from one token sampled from `new`: r - 1 - log r with r = p_reference / p_new ("k3", equation 4).

    Its mean over samples is the KL, and it is never negative. Mind the direction: the reference stands in the numerator.
    """
    log_ratio = reference - new
    return torch.exp(log_ratio) - log_ratio - 1


def grpo_loss(
    new: Float[Tensor, "B T"],
    old: Float[Tensor, "B T"] | None,
    reference: Float[Tensor, "B T"] | None,
    advantages: Float[Tensor, " B"],
    mask: Mask,
    beta: float = 0.0,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo",
    max_completion_length: int | None = None,
    num_items: int | None = None,
    use_bias_correction_kl: bool = True,
) -> tuple[Float[Tensor, ""], Metrics]:
    """The clipped objective with its KL penalty, as a loss, and the metrics TRL logs.

    new, old, reference: log-probabilities in nats of the completion's tokens under the policy that is trained, the one that
    sampled (None: the same one, the first step after sampling), and the one to stay close to (needed where beta > 0).
    mask: 1 on the completion's tokens, the one that ends it included. max_completion_length: the divisor of "dr_grpo".
    num_items: the tokens of the whole batch, where this is a part of it; the divisor of "dapo".
    epsilon, epsilon_high: how far a ratio may fall and rise (None: as far). use_bias_correction_kl: weigh each KL estimate by the ratio, so that its gradient, too, is that of the KL (TRL's default; grpo.md).
    """
    counted = mask.bool()
    epsilon_high = epsilon if epsilon_high is None else epsilon_high
    old = new.detach() if old is None else old
    # Whatever stands on padding, its ratio is 1 and its gradient 0.
    ratio = torch.exp(torch.where(counted, new - old, 0.0))
    clipped_ratio = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    advantage = advantages.unsqueeze(1)  # every token of a completion has the same advantage
    token_losses = -torch.minimum(ratio * advantage, clipped_ratio * advantage)

    metrics = _clip_metrics(ratio.detach(), advantage, mask, epsilon, epsilon_high)
    if beta:
        assert reference is not None, "a KL penalty needs the reference's log-probabilities"
        kl = kl_estimate(torch.where(counted, new, 0.0), torch.where(counted, reference, 0.0))
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
    counted = mask.to(token_losses.dtype)
    if loss_type == "grpo":  # each completion the same, so a token of a long one less
        return ((token_losses * counted).sum(1) / counted.sum(1).clamp(min=1)).mean()
    if loss_type == "bnpo":  # each token of this batch the same
        return masked_mean(token_losses, mask)
    if loss_type == "dr_grpo":  # each token the same, whatever else is in the batch
        assert max_completion_length is not None, "dr_grpo divides by the length a completion may have"
        return (token_losses * counted).sum() / (len(counted) * max_completion_length)
    if loss_type == "dapo":  # each token of the whole batch the same, also where this is a part of it
        tokens = counted.sum() if num_items is None else counted.new_tensor(num_items)
        return (token_losses * counted).sum() / tokens.clamp(min=1)
    raise ValueError(f"there is no loss type {loss_type!r}; choose grpo, bnpo, dr_grpo or dapo")


def _clip_metrics(
    ratio: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B 1"],
    mask: Mask,
    epsilon: float,
    epsilon_high: float,
) -> Metrics:
    """The share of tokens that clipping leaves without a gradient, below and above."""
    low = ((ratio < 1 - epsilon) & (advantage < 0)).to(ratio.dtype)
    high = ((ratio > 1 + epsilon_high) & (advantage > 0)).to(ratio.dtype)
    return {
        "clip_ratio/low_mean": masked_mean(low, mask).item(),
        "clip_ratio/high_mean": masked_mean(high, mask).item(),
        "clip_ratio/region_mean": masked_mean(low + high, mask).item(),
    }
