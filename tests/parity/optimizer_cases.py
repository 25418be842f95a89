"""The same parameters and gradients in optimizers of torch and of levels 2 and 3."""

from typing import Any

import numpy as np
import torch

from tests.parity.arrays import array
from tests.parity.recorder import as_array
from v3_numpy_deep.autograd import Parameter

STEPS = 25
LEVELS = ("v1", "v2", "v3")  # v1 is torch


def parameters(level: str, shapes: list[tuple[int, ...]], dtype: Any = np.float64) -> list[Any]:
    """Random ones; the same for every level."""
    make = Parameter if level == "v3" else lambda a: torch.nn.Parameter(torch.from_numpy(a))
    return [make(array(i, *shape, dtype=dtype)) for i, shape in enumerate(shapes)]


def groups(parts: list[tuple[list[Any], str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Groups of levels 2 and 3: parameters, a letter for each, options."""
    return [{"parameters": list(part), "names": list(names), **options} for part, names, options in parts]


def set_gradients(level: str, made: list[Any], step: int) -> None:
    """The gradients of a step."""
    for i, parameter in enumerate(made):
        gradient = array(1000 * step + i, *parameter.shape, dtype=as_array(parameter).dtype)
        parameter.grad = gradient if level == "v3" else torch.from_numpy(gradient)


def run(level: str, optimizers: Any, made: list[Any], first: int = 0, last: int = STEPS) -> np.ndarray:
    """All parameters in a row after the steps, with a learning rate that changes. torch may have several optimizers."""
    for step in range(first, last):
        set_gradients(level, made, step)
        rate = 1e-2 * (1 - step / STEPS)
        for optimizer in optimizers if level == "v1" else [optimizers]:
            for group in getattr(optimizer, "param_groups", []):
                group["lr"] = rate
            optimizer.learning_rate = rate
            optimizer.step()
    return np.concatenate([as_array(parameter).ravel() for parameter in made])


def check_resumed(level: str, make: Any) -> None:
    """An optimizer that takes over the state of another goes on bit for bit. make(): parameters and optimizer."""
    whole, optimizer = make()
    run(level, optimizer, whole, 0, 10)
    state = {name: np.array(value) for name, value in optimizer.state_dict().items()}
    resumed, other = make()
    for copy, parameter in zip(resumed, whole, strict=True):
        as_array(copy)[...] = as_array(parameter)
    other.load_state_dict(state if level == "v3" else {k: torch.from_numpy(v) for k, v in state.items()})
    np.testing.assert_array_equal(run(level, optimizer, whole, 10), run(level, other, resumed, 10))


def unmoved(level: str, optimizer: Any, made: list[Any], frozen: int) -> list[bool]:
    """Which parameters stay in a step in which one has no gradient; after `zero_grad` none has."""
    set_gradients(level, made, 0)
    made[frozen].grad = None
    before = [as_array(parameter).copy() for parameter in made]
    optimizer.step()
    same = [bool(np.array_equal(as_array(p), old)) for p, old in zip(made, before, strict=True)]
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in made)
    return same
