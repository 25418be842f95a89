"""Three steps of AdamW with two weights, as in v2_handwritten/pretrain/components/optimizers.md."""

import math

import numpy as np
import torch
from torch import Tensor

from tests.worked import agrees
from v2_handwritten.pretrain.components.optimizers import AdamW

PAGE = "v2_handwritten/pretrain/components/optimizers.md"

# Of a weight in use at every step, and of one whose token occurs in the first batch only.
GRADIENTS = torch.tensor([[4.0, 0.4], [4.0, 0.0], [-4.0, 0.0]])
BETA1, BETA2 = 0.9, 0.95


def adamw(weights: Tensor) -> AdamW:
    groups = [{"names": ["weights"], "parameters": [weights], "weight_decay": 0.1}]
    return AdamW(groups, learning_rate=0.1, betas=(BETA1, BETA2), epsilon=1e-8)


def test_three_steps_with_two_weights() -> None:
    weights = torch.ones(2)
    optimizer = adamw(weights)
    moments, corrected, steps = [], [], []
    for t, gradient in enumerate(GRADIENTS, start=1):
        before, weights.grad = weights.clone(), gradient
        optimizer.step()
        m, v = optimizer.first_moments[0][0].clone(), optimizer.second_moments[0][0].clone()
        m_hat, v_hat = m / (1 - BETA1**t), v / (1 - BETA2**t)
        moments.append(torch.stack([m, v], dim=1).flatten())
        corrected.append(torch.stack([m_hat, v_hat], dim=1).flatten())
        steps.append(torch.cat([m_hat / v_hat.sqrt(), weights]))
        np.testing.assert_allclose(weights, 0.99 * before - 0.1 * m_hat / v_hat.sqrt(), atol=1e-6)
    agrees(PAGE, "moments", torch.stack(moments))
    agrees(PAGE, "corrected", torch.stack(corrected))
    agrees(PAGE, "step", torch.stack(steps))


def test_a_lost_step_count_changes_the_first_steps_after_a_resume() -> None:
    """By √(1 - β₂ᵗ) / (1 - β₁ᵗ): here measured with moments that have settled at a constant gradient of 1."""
    counts = [1, 2, 10, 100, 1000]
    lengths = []
    for beta2 in (0.95, 0.999):
        weight = torch.zeros(1, dtype=torch.float64)
        groups = [{"names": ["weight"], "parameters": [weight], "weight_decay": 0.0}]
        optimizer = AdamW(groups, learning_rate=1.0, betas=(0.9, beta2))
        optimizer.load_state_dict(
            {"steps": torch.tensor(0)}
            | {f"{name}_moment.weight": torch.ones(1, dtype=torch.float64) for name in ("first", "second")}
        )
        moved = []
        for _ in range(counts[-1]):
            before, weight.grad = weight.item(), torch.ones(1, dtype=torch.float64)
            optimizer.step()
            moved.append(before - weight.item())
        lengths.append([moved[t - 1] for t in counts])
        for t in counts:
            assert math.isclose(moved[t - 1], math.sqrt(1 - beta2**t) / (1 - 0.9**t), rel_tol=1e-6)
    agrees(PAGE, "length of step t after the resume", lengths, digits=2)
