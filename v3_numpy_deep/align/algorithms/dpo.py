"""Direct preference optimization: make the chosen completion more probable than the rejected one, relative to a reference.

With h = (log π(chosen) - log π_ref(chosen)) - (log π(rejected) - log π_ref(rejected)), the losses of a pair are

    sigmoid  -log σ(β h)                                   Rafailov et al. 2023, equation 7
    hinge    max(0, 1 - β h)                               Zhao et al. 2023 (SLiC), as in Liu et al. 2024
    ipo      (h̄ - 1 / 2β)², h̄ of means over tokens         Azar et al. 2024, equation 17

Label smoothing ε says that a share ε of the labels is wrong: (1-ε) · loss(h) + ε · loss(-h), for sigmoid. A derivation of
why this needs no reward model stands in v2_handwritten/align/algorithms/dpo.md.

Level 1: trl's `DPOTrainer`, which computes the loss inside. Level 2: the same over torch.

    uv run python -c "import numpy as np; from v3_numpy_deep.align.algorithms.dpo import *; print(dpo_loss(Tensor([-3.0]), Tensor([-4.0]), np.array([-3.5]), np.array([-3.5])))"
"""

from typing import Literal

from jaxtyping import Float, Int

from v3_numpy_deep.align.algorithms.reward_loss import log_sigmoid
from v3_numpy_deep.autograd import Array, Tensor
from v3_numpy_deep.autograd import operations as ops

LossType = Literal["sigmoid", "hinge", "ipo"]


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

    beta: how strongly the policy is held to the reference (for ipo, the paper's τ). The lengths of the completions in tokens are
    needed for ipo only, which compares means over tokens.
    """
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
        assert chosen_lengths is not None, "ipo needs the lengths of the completions"
        assert rejected_lengths is not None, "ipo needs the lengths of the completions"
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
