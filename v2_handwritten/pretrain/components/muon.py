"""Muon by hand (Jordan et al. 2024): the momentum of a hidden matrix is made orthogonal before it moves the matrix.

With gradient G of a matrix of shape [A, B], momentum M, learning rate η and decay λ:

    M ← μ M + (1 - μ) G            N = μ M + (1 - μ) G              Nesterov: a look ahead
    O ≈ U Vᵀ  for N = U Σ Vᵀ       (`orthogonalize`: all singular values near 1)
    W ← W - η λ W - 0.2 η √max(A, B) O

The factor makes an update as large as AdamW's (Liu et al. 2025, section 2.2), so both share a learning rate and a decay. What is
no hidden matrix (embeddings, the output matrix, norms, biases) is AdamW's, which `Muon` therefore is, too.

Level 1 is `torch.optim.Muon` beside `torch.optim.AdamW`. Level 3: the same in NumPy. Theory: muon.md.

    optimizer = make_optimizer(model, settings.pretrain)
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shared_data.settings import OptimizerSettings
from shared_data.training.parameter_groups import hidden_apart, parameter_groups
from v2_handwritten.models.weight_layout import lay_out_for_training
from v2_handwritten.pretrain.components.optimizers import AdamW

# Of the polynomial, chosen so that small singular values grow fastest (Jordan et al. 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
_STACK = 2**24  # numbers that are made orthogonal at once: enough to keep a GPU busy, and 64 MiB


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> AdamW:
    """The optimizer that the settings name, over all of the model that is trained; its matrices now lie in memory as training reads them."""
    lay_out_for_training(model)
    betas = (settings.adam_beta1, settings.adam_beta2)
    if settings.optim == "adamw":
        groups = parameter_groups(model, settings.weight_decay)
        return AdamW(groups, settings.learning_rate, betas, settings.adam_epsilon)
    groups = hidden_apart(parameter_groups(model, settings.weight_decay))
    return Muon(groups, settings.learning_rate, betas, settings.adam_epsilon, settings.muon_momentum)


def orthogonalize(matrices: Float[Tensor, "N A B"], iterations: int = ITERATIONS) -> Float[Tensor, "N A B"]:
    """N matrices with the same singular vectors, and all singular values between about 0.7 and 1.2.

    Newton-Schulz: X ← a X + (b XXᵀ + c (XXᵀ)²) X maps each singular value σ to aσ + bσ³ + cσ⁵ and leaves the vectors alone. The
    first X has no singular value above 1. On a GPU in bfloat16, whose tensor cores are fast and exact enough for this.
    """
    a, b, c = COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    X = matrices if wide else matrices.mT
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    X = X.bfloat16() if X.is_cuda else X
    for _ in range(iterations):
        gram = torch.bmm(X, X.mT)
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    X = X.to(matrices.dtype)
    return X if wide else X.mT


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
        self.momenta = [[torch.zeros_like(p) for p in group["parameters"]] for group in self.hidden]

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        super().step()
        for group, momenta in zip(self.hidden, self.momenta, strict=True):
            for shape, members in self._of_one_shape(group["parameters"], momenta):
                ahead = []
                for _, gradient, momentum in members:
                    momentum.lerp_(gradient, 1 - self.momentum)
                    ahead.append(gradient.lerp(momentum, self.momentum))
                updates = orthogonalize(torch.stack(ahead)).unbind()
                for (parameter, _, _), update in zip(members, updates, strict=True):
                    parameter.mul_(1 - self.learning_rate * group["weight_decay"])
                    parameter.sub_(update, alpha=self.learning_rate * 0.2 * math.sqrt(max(shape)))

    @staticmethod
    def _of_one_shape(
        parameters: list[Tensor], momenta: list[Tensor]
    ) -> Iterator[tuple[torch.Size, list[tuple[Tensor, Tensor, Tensor]]]]:
        """Parameters, gradients and momenta of one shape, as many as have `_STACK` numbers: one product then serves them all."""
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor, Tensor]]] = {}
        for parameter, momentum in zip(parameters, momenta, strict=True):
            if parameter.grad is not None:
                entry = (parameter, parameter.grad, momentum)
                by_shape.setdefault(parameter.shape, []).append(entry)
        for shape, members in by_shape.items():
            at_once = max(1, _STACK // shape.numel())
            for start in range(0, len(members), at_once):
                yield shape, members[start : start + at_once]

    def zero_grad(self) -> None:
        """Drop the gradients; the next backward pass makes new ones instead of adding to old ones."""
        super().zero_grad()
        for group in self.hidden:
            for parameter in group["parameters"]:
                parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """AdamW's, and the momentum of every hidden matrix by name."""
        state = super().state_dict()
        for group, momenta in zip(self.hidden, self.momenta, strict=True):
            state |= {f"momentum.{name}": m for name, m in zip(group["names"], momenta, strict=True)}
        return state
