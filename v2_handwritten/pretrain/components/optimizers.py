"""AdamW by hand (Loshchilov & Hutter 2019, algorithm 2), on all parameters of a group at once.

With gradient g, moments m and v, step count t, learning rate η and decay λ:

    θ ← θ - η λ θ                              decoupled decay: not part of g, so v does not rescale it
    m ← β1 m + (1 - β1) g                      v ← β2 v + (1 - β2) g²
    θ ← θ - η (m / (1 - β1ᵗ)) / (√(v / (1 - β2ᵗ)) + ε)

Level 1 is `torch.optim.AdamW`; level 3 goes through the same lines in NumPy, in place and in pieces that fit the cache.
Here `torch._foreach_*` takes a list of tensors per call: on a GPU one kernel serves many tensors, on a CPU Python is
left once per line of the formula and not once per tensor.

    optimizer = AdamW(parameter_groups(model, weight_decay=0.1), learning_rate=3e-3, betas=(0.9, 0.95), epsilon=1e-8)
"""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from shared_data.errors import UserError
from shared_data.files import atomic_write


class AdamW:
    """Adam with decoupled weight decay; `learning_rate` is set anew before every step by the schedule."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
    ) -> None:
        self.groups = groups
        self.learning_rate = learning_rate
        self.betas = betas
        self.epsilon = epsilon
        self.steps = 0
        self.first_moments = [[torch.zeros_like(p) for p in group["parameters"]] for group in groups]
        self.second_moments = [[torch.zeros_like(p) for p in group["parameters"]] for group in groups]

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        self.steps += 1
        for group, first, second in zip(self.groups, self.first_moments, self.second_moments, strict=True):
            moving = [i for i, parameter in enumerate(group["parameters"]) if parameter.grad is not None]
            if moving:
                self._update(
                    [group["parameters"][i] for i in moving],
                    [group["parameters"][i].grad for i in moving],
                    [first[i] for i in moving],
                    [second[i] for i in moving],
                    group["weight_decay"],
                )

    def _update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        first: list[Tensor],
        second: list[Tensor],
        weight_decay: float,
    ) -> None:
        """The formula above, a line of it per call.

        Both corrections are numbers: with r = √(1 - β2ᵗ), m̂ / (√v̂ + ε) = r / (1 - β1ᵗ) · m / (√v + r ε), which saves
        two passes over all parameters.
        """
        beta1, beta2 = self.betas
        root_correction = math.sqrt(1 - beta2**self.steps)
        step_size = self.learning_rate * root_correction / (1 - beta1**self.steps)
        if weight_decay:
            torch._foreach_mul_(parameters, 1 - self.learning_rate * weight_decay)
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        denominators = torch._foreach_sqrt(second)
        torch._foreach_add_(denominators, root_correction * self.epsilon)
        torch._foreach_addcdiv_(parameters, first, denominators, -step_size)

    def zero_grad(self) -> None:
        """Drop the gradients; the next backward pass makes new ones instead of adding to old ones."""
        for group in self.groups:
            for parameter in group["parameters"]:
                parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """The step count and both moments of every parameter by name, as safetensors holds them."""
        state = {"steps": torch.tensor(self.steps)}
        for group, first, second in zip(self.groups, self.first_moments, self.second_moments, strict=True):
            for name, m, v in zip(group["names"], first, second, strict=True):
                state[f"first_moment.{name}"], state[f"second_moment.{name}"] = m, v
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave. Raises `UserError` where it is the state of another model."""
        own = self.state_dict()
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in state.items()}:
            raise UserError("the optimizer state is of a model of another shape; start over with --force")
        self.steps = int(state["steps"])
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def save(self, path: Path) -> None:
        """Write `state_dict` as safetensors; the file appears whole or not at all."""
        with atomic_write(path) as file:
            file.write(save(self.state_dict()))

    def load(self, path: Path) -> None:
        """Take over what `save` wrote. Raises `UserError` for a damaged file or the state of another model."""
        try:
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is damaged ({error}); copy it again") from error
        self.load_state_dict(state)
