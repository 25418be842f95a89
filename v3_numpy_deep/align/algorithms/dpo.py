"""Direct preference optimization: make the chosen reply more probable than the rejected one, relative to a reference.

With h = (log π(chosen) - log π_ref(chosen)) - (log π(rejected) - log π_ref(rejected)), the losses of a pair are

    sigmoid  -log σ(β h)                                   Rafailov et al. 2023, equation 7
    hinge    max(0, 1 - β h)                               Zhao et al. 2023 (SLiC), as in Liu et al. 2024
    ipo      (h̄ - 1 / 2β)², h̄ of means over tokens         Azar et al. 2024, equation 17

Label smoothing ε says that a share ε of the labels is wrong: (1-ε) · loss(h) + ε · loss(-h), for sigmoid. A derivation of
why this needs no reward model stands in v2_handwritten/align/algorithms/dpo.md.

Level 1: trl's `DPOTrainer`, which computes the loss inside. Level 2: the same over torch.

    python -c "from v3_numpy_deep.align.algorithms.dpo import *; print(dpo_loss(Tensor([-3.0]), Tensor([-4.0]), np.array([-3.5]), np.array([-3.5])))"
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from shared_data.errors import UserError
from shared_data.preference_pairs import Pair, check_pairs
from v3_numpy_deep.align.algorithms.reward_loss import log_sigmoid
from v3_numpy_deep.autograd import Array, Tensor
from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.models.log_probs import completion_log_probs
from v3_numpy_deep.models.transformer import Transformer

LossType = Literal["sigmoid", "hinge", "ipo"]
LOSS_TYPES = ("sigmoid", "hinge", "ipo")


@dataclass(frozen=True)
class PreferenceBatch:
    """B pairs in N = 2B rows, first the chosen replies, then the rejected ones, each behind its prompt; padded on the right."""

    input_ids: Int64[np.ndarray, "N T"]
    reply_mask: Int64[np.ndarray, "N T"]  # 1 on the tokens of the reply
    attention_mask: Int64[np.ndarray, "N T"]  # 1 on prompt and reply

    @property
    def reply_lengths(self) -> Int64[np.ndarray, "N"]:
        """Tokens of each reply."""
        return self.reply_mask.sum(-1)


def preference_batch(
    pairs: Sequence[Pair], pad_id: int, max_length: int, names: Sequence[str] | None = None
) -> PreferenceBatch:
    """Put pairs of (prompt ids, chosen ids, rejected ids) into arrays; what exceeds `max_length` is cut off at the end.

    Raises `UserError` for a pair that has nothing to teach (shared_data/preference_pairs.py), by its name.
    """
    check_pairs(pairs, max_length, names)
    replies = [(prompt, chosen) for prompt, chosen, _ in pairs]
    replies += [(prompt, rejected) for prompt, _, rejected in pairs]
    T = min(max_length, max(len(prompt) + len(reply) for prompt, reply in replies))
    input_ids = np.full((len(replies), T), pad_id, np.int64)
    reply_mask, attention_mask = np.zeros((2, len(replies), T), np.int64)
    for row, (prompt, reply) in enumerate(replies):
        text = [*prompt, *reply][:T]
        input_ids[row, : len(text)] = text
        reply_mask[row, len(prompt) : len(text)] = 1
        attention_mask[row, : len(text)] = 1
    return PreferenceBatch(input_ids, reply_mask, attention_mask)


def sequence_log_probabilities(
    model: Transformer,
    input_ids: Int[Array, "N T"],
    reply_mask: Int[Array, "N T"] | Bool[Array, "N T"],
    attention_mask: Int[Array, "N T"] | Bool[Array, "N T"] | None = None,
) -> Float[Tensor, "N"]:
    """log π(reply | prompt): the sum over the tokens of each reply, at temperature 1.

    For the reference, call this on a `frozen_copy` inside `no_grad()`; its numbers never change, so once is enough.
    """
    return completion_log_probs(model, input_ids, reply_mask, attention_mask).sum(-1)


# The loss is a tensor without axes; the shape checker of the tests would take a shape in this tuple for level 2's.
def dpo_loss(
    policy_chosen: Float[Tensor, "B"],
    policy_rejected: Float[Tensor, "B"],
    reference_chosen: Float[Array, "B"],
    reference_rejected: Float[Array, "B"],
    beta: float = 0.1,
    loss_type: LossType = "sigmoid",
    label_smoothing: float = 0.0,
    chosen_lengths: Int[Array, "B"] | None = None,
    rejected_lengths: Int[Array, "B"] | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Mean loss over B pairs of log-probabilities in nats, and what trl logs.

    beta: how strongly the policy is held to the reference (for ipo, the paper's τ). The lengths of the replies in tokens are
    needed for ipo only, which compares means over tokens. Raises `UserError` for settings out of range.
    """
    check_dpo_settings(beta, loss_type, label_smoothing)
    trained = isinstance(reference_chosen, Tensor) or isinstance(reference_rejected, Tensor)
    assert not trained, "the reference must not be trained: hand in arrays"
    chosen_ratios = policy_chosen - reference_chosen
    rejected_ratios = policy_rejected - reference_rejected
    h = chosen_ratios - rejected_ratios
    if loss_type == "sigmoid":
        losses = -(1 - label_smoothing) * log_sigmoid(beta * h) - label_smoothing * log_sigmoid(-beta * h)
    elif loss_type == "hinge":
        losses = ops.maximum(1 - beta * h, 0.0)
    else:
        assert chosen_lengths is not None, "ipo needs the lengths of the replies"
        assert rejected_lengths is not None, "ipo needs the lengths of the replies"
        mean_h = chosen_ratios / chosen_lengths - rejected_ratios / rejected_lengths
        losses = (mean_h - 1 / (2 * beta)) ** 2
    chosen_rewards, rejected_rewards = beta * chosen_ratios.data, beta * rejected_ratios.data
    metrics = {
        "rewards/chosen": chosen_rewards.mean().item(),
        "rewards/rejected": rejected_rewards.mean().item(),
        "rewards/accuracies": (chosen_rewards > rejected_rewards).mean().item(),
        "rewards/margins": (chosen_rewards - rejected_rewards).mean().item(),
        "logps/chosen": policy_chosen.data.mean().item(),
        "logps/rejected": policy_rejected.data.mean().item(),
    }
    return losses.mean(), metrics


def check_dpo_settings(beta: float, loss_type: str, label_smoothing: float) -> None:
    """Raise `UserError` for settings that make no loss."""
    if loss_type not in LOSS_TYPES:
        raise UserError(f"unknown DPO loss {loss_type!r}; choose one of {', '.join(LOSS_TYPES)}")
    if not beta > 0:
        raise UserError(f"beta is {beta}; it must be positive, 0.1 is usual")
    if not 0 <= label_smoothing < 0.5:
        raise UserError(
            f"label_smoothing is {label_smoothing}; it is the share of wrong labels, from 0 to below 0.5"
        )
    if label_smoothing and loss_type != "sigmoid":
        raise UserError(
            f"label_smoothing belongs to the sigmoid loss, not to {loss_type}; set it to 0 or choose sigmoid"
        )
