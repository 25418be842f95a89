"""Newton-Schulz on a 2 x 2 matrix, and the step that follows, as in v2_handwritten/pretrain/components/muon.md."""

import numpy as np
import torch

from tests.worked import agrees
from v2_handwritten.pretrain.components.muon import COEFFICIENTS, ITERATIONS, Muon, orthogonalize
from v2_handwritten.pretrain.components.optimizers import AdamW

PAGE = "v2_handwritten/pretrain/components/muon.md"

N = torch.tensor([[2.64, 1.48], [3.02, 2.64]])  # singular values 5 and 0.5
U = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
V = torch.tensor([[0.8, -0.6], [0.6, 0.8]])


def test_newton_schulz_lifts_the_weak_direction() -> None:
    np.testing.assert_allclose(U @ torch.diag(torch.tensor([5.0, 0.5])) @ V.T, N, atol=1e-6)
    agrees(PAGE, "UVᵀ", U @ V.T)
    after = torch.stack([orthogonalize(N[None], n)[0] for n in range(ITERATIONS + 1)])
    agrees(PAGE, "singular value", np.linalg.svd(after.numpy(), compute_uv=False).T)
    agrees(PAGE, "O", after[-1])


def test_a_first_step_of_adamw_and_of_muon() -> None:
    for title, hidden in (("step of AdamW", False), ("step of Muon", True)):
        weight = torch.zeros(2, 2)
        groups = [{"names": ["weight"], "parameters": [weight], "weight_decay": 0.0, "hidden": hidden}]
        optimizer = Muon(groups, learning_rate=0.1) if hidden else AdamW(groups, learning_rate=0.1)
        weight.grad = N
        optimizer.step()
        agrees(PAGE, title, weight)


def test_a_row_of_zeros_stays_a_row_of_zeros() -> None:
    """An embedding whose token did not occur: it does not move, and the others move the further."""
    table = torch.cat([N, torch.zeros(2, 2)])
    agrees(PAGE, "O of a table", orthogonalize(table[None])[0])


def test_the_exercise_a_singular_value_of_a_hundredth() -> None:
    a, b, c = COEFFICIENTS
    values = [0.01]
    for _ in range(ITERATIONS):
        values.append(a * values[-1] + b * values[-1] ** 3 + c * values[-1] ** 5)
    assert next(n for n, value in enumerate(values) if value > 0.7) == 4
