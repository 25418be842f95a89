"""AdamW by hand (Loshchilov & Hutter 2019, algorithm 2), in place and in pieces that stay in the cache.

With gradient g, moments m and v, step count t, learning rate η and decay λ:

    θ ← θ - η λ θ                              decoupled decay: not part of g, so v does not rescale it
    m ← β1 m + (1 - β1) g                      v ← β2 v + (1 - β2) g²
    θ ← θ - η (m / (1 - β1ᵗ)) / (√(v / (1 - β2ᵗ)) + ε)

Level 1 is `torch.optim.AdamW`; level 2 hands all tensors of a group to one `torch._foreach_*` call per line.
A NumPy expression over a large array makes an array per operation, and each goes to main memory and back: a dozen such
trips a step. Here a piece of each array is small enough that all lines find it in the cache, and `out=` makes nothing.

    optimizer = AdamW(parameter_groups(model, weight_decay=0.1), learning_rate=3e-3, betas=(0.9, 0.95), epsilon=1e-8)
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from shared_data.errors import UserError
from shared_data.files import atomic_write

_PIECE = (
    16_384  # numbers: four arrays and two of scratch in float32 are 400 KB, about a core's second-level cache
)


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
        self.first_moments = [[np.zeros_like(p.data) for p in group["parameters"]] for group in groups]
        self.second_moments = [[np.zeros_like(p.data) for p in group["parameters"]] for group in groups]

    def step(self) -> None:
        """Move every parameter that has a gradient."""
        self.steps += 1
        for group, first, second in zip(self.groups, self.first_moments, self.second_moments, strict=True):
            for parameter, m, v in zip(group["parameters"], first, second, strict=True):
                if parameter.grad is None:
                    continue
                # Views, so that in-place work on them reaches the parameter: all four arrays are contiguous.
                arrays = [a.reshape(-1) for a in (parameter.data, np.ascontiguousarray(parameter.grad), m, v)]
                for start in range(0, m.size, _PIECE):
                    p, g, m_piece, v_piece = (a[start : start + _PIECE] for a in arrays)
                    self._update(p, g, m_piece, v_piece, group["weight_decay"])

    def _update(
        self,
        parameter: Float[np.ndarray, "N"],
        gradient: Float[np.ndarray, "N"],
        first: Float[np.ndarray, "N"],
        second: Float[np.ndarray, "N"],
        weight_decay: float,
    ) -> None:
        """The formula above, a line of it per call.

        Both corrections are numbers: with r = √(1 - β2ᵗ), m̂ / (√v̂ + ε) = r / (1 - β1ᵗ) · m / (√v + r ε), which saves
        two passes over all parameters.
        """
        beta1, beta2 = self.betas
        root_correction = math.sqrt(1 - beta2**self.steps)
        step_size = self.learning_rate * root_correction / (1 - beta1**self.steps)
        scratch = np.empty_like(gradient)
        if weight_decay:
            parameter *= 1 - self.learning_rate * weight_decay
        first += np.multiply(np.subtract(gradient, first, out=scratch), 1 - beta1, out=scratch)
        second *= beta2
        second += np.multiply(np.multiply(gradient, gradient, out=scratch), 1 - beta2, out=scratch)
        denominator = np.sqrt(second, out=scratch)
        denominator += root_correction * self.epsilon
        update = np.divide(first, denominator, out=scratch)
        update *= step_size
        parameter -= update

    def zero_grad(self) -> None:
        """Drop the gradients; the next backward pass makes new ones instead of adding to old ones."""
        for group in self.groups:
            for parameter in group["parameters"]:
                parameter.grad = None

    def state_dict(self) -> dict[str, np.ndarray]:
        """The step count and both moments of every parameter by name, as safetensors holds them."""
        state = {"steps": np.array(self.steps)}
        for group, first, second in zip(self.groups, self.first_moments, self.second_moments, strict=True):
            for name, m, v in zip(group["names"], first, second, strict=True):
                state[f"first_moment.{name}"], state[f"second_moment.{name}"] = m, v
        return state

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Take over what `state_dict` gave. Raises `UserError` where it is the state of another model."""
        own = self.state_dict()
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in state.items()}:
            raise UserError("the optimizer state is of a model of another shape; start over with --force")
        self.steps = int(state["steps"])
        for name, array in own.items():
            array[...] = state[name]

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
