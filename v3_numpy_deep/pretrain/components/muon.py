"""Muon by hand (Jordan et al. 2024): the momentum of a hidden matrix is made orthogonal before it moves the matrix.

With gradient G of a matrix of shape [A, B], momentum M, learning rate η and decay λ:

    M ← μ M + (1 - μ) G            N = μ M + (1 - μ) G              Nesterov: a look ahead
    O ≈ U Vᵀ  for N = U Σ Vᵀ       (`orthogonalize`: all singular values near 1)
    W ← W - η λ W - 0.2 η √max(A, B) O

The factor makes an update as large as AdamW's (Liu et al. 2025, section 2.2), so both share a learning rate and a decay. What is
no hidden matrix (embeddings, the output matrix, norms, biases) is AdamW's, which `Muon` therefore is, too.

Level 1 is `torch.optim.Muon` beside `torch.optim.AdamW`. Theory: muon.md at level 2.

    optimizer = make_optimizer(model, settings.pretrain)
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from shared_data.memory import keep_freed_memory
from shared_data.settings import OptimizerSettings
from shared_data.training.parameter_groups import hidden_apart, parameter_groups
from v3_numpy_deep.autograd.module import Module
from v3_numpy_deep.models.weight_layout import lay_out_for_training
from v3_numpy_deep.pretrain.components.optimizers import AdamW

# Of the polynomial, chosen so that small singular values grow fastest (Jordan et al. 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def make_optimizer(model: Module, settings: OptimizerSettings) -> AdamW:
    """The optimizer that the settings name, over all of the model that is trained; its matrices now lie in memory as training reads them."""
    lay_out_for_training(model)
    keep_freed_memory()  # a training step allocates what the step before has freed
    betas = (settings.adam_beta1, settings.adam_beta2)
    if settings.optim == "adamw":
        groups = parameter_groups(model, settings.weight_decay)
        return AdamW(groups, settings.learning_rate, betas, settings.adam_epsilon)
    groups = hidden_apart(parameter_groups(model, settings.weight_decay))
    return Muon(groups, settings.learning_rate, betas, settings.adam_epsilon, settings.muon_momentum)


def orthogonalize(matrix: Float[np.ndarray, "A B"], iterations: int = ITERATIONS) -> Float[np.ndarray, "A B"]:
    """A matrix with the same singular vectors, and all singular values between about 0.7 and 1.2.

    Newton-Schulz: X ← a X + (b XXᵀ + c (XXᵀ)²) X maps each singular value σ to aσ + bσ³ + cσ⁵ and leaves the vectors alone. The
    first X has no singular value above 1.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    X = matrix if wide else matrix.T
    X = X / max(np.linalg.norm(X), 1e-7)
    for _ in range(iterations):
        gram = X @ X.T
        polynomial = gram @ gram
        polynomial *= c
        polynomial += b * gram
        X = a * X + polynomial @ X
    return X if wide else X.T


class Muon(AdamW):
    """Muon for the groups marked `hidden`, AdamW for the others, with one learning rate."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(
            [group for group in groups if not group.get("hidden")], learning_rate, betas, epsilon
        )
        self.hidden = [group for group in groups if group.get("hidden")]
        self.momentum = momentum
        self.momenta = [[np.zeros_like(p.data) for p in group["parameters"]] for group in self.hidden]

    def step(self) -> None:
        """Move every parameter that has a gradient."""
        super().step()
        for group, momenta in zip(self.hidden, self.momenta, strict=True):
            for parameter, momentum in zip(group["parameters"], momenta, strict=True):
                if parameter.grad is None:
                    continue
                gradient = parameter.grad
                momentum += (1 - self.momentum) * (gradient - momentum)
                update = orthogonalize(gradient + self.momentum * (momentum - gradient))
                update *= self.learning_rate * 0.2 * math.sqrt(max(update.shape))
                parameter.data *= 1 - self.learning_rate * group["weight_decay"]
                parameter.data -= update

    def zero_grad(self) -> None:
        """Drop the gradients; the next backward pass makes new ones instead of adding to old ones."""
        super().zero_grad()
        for group in self.hidden:
            for parameter in group["parameters"]:
                parameter.grad = None

    def state_dict(self) -> dict[str, np.ndarray]:
        """AdamW's, and the momentum of every hidden matrix by name."""
        state = super().state_dict()
        for group, momenta in zip(self.hidden, self.momenta, strict=True):
            state |= {f"momentum.{name}": m for name, m in zip(group["names"], momenta, strict=True)}
        return state
