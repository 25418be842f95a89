"""Compares one block of two levels: output, gradient of every input, gradient of every parameter."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.arrays import array
from tests.parity.recorder import ParityRecorder

each_kernel = pytest.mark.parametrize("kernels", ["plain", "fused"])


def compare_functions(
    parity: ParityRecorder,
    component: str,
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    inputs: dict[str, Tensor],
    tolerance: float,
    levels: str = "v2-v1",
) -> None:
    """Both sides get copies of the inputs; floating ones need gradients. The output's gradient is random, the same for both."""
    results: list[dict[str, Tensor]] = []
    for function in (ours, theirs):
        copies = {
            name: value.clone().requires_grad_(value.is_floating_point()) for name, value in inputs.items()
        }
        output = function(**copies)
        # A loss has small gradients: errors are measured against 1 at least.
        scale = 1.0 if output.ndim else 100.0
        direction = torch.as_tensor(array(99, *output.shape, scale=scale), dtype=output.dtype)
        output.backward(direction)
        gradients = {f"grad {name}": c.grad for name, c in copies.items() if c.grad is not None}
        assert len(gradients) == sum(c.requires_grad for c in copies.values()), "an input got no gradient"
        results.append({"output": output.detach()} | gradients)
    for quantity, expected in results[1].items():
        parity(
            component=component,
            quantity=quantity,
            levels=levels,
            actual=results[0][quantity],
            expected=expected,
            tolerance=tolerance,
        )


def compare_modules(
    parity: ParityRecorder,
    component: str,
    ours: torch.nn.Module,
    theirs: torch.nn.Module,
    x: Tensor,
    tolerance: float,
    our_arguments: Sequence[Any] = (),
    their_arguments: dict[str, Any] | None = None,
) -> None:
    """The same, for modules whose parameters have the same names; ours get the library's values."""
    ours.load_state_dict(theirs.state_dict())

    def call_ours(x: Tensor, **_: Tensor) -> Tensor:
        return ours(x, *our_arguments)

    def call_theirs(x: Tensor, **_: Tensor) -> Tensor:
        output = theirs(x, **(their_arguments or {}))
        return output[0] if isinstance(output, tuple) else output

    compare_functions(parity, component, call_ours, call_theirs, {"x": x}, tolerance)
    for (name, actual), (other, expected) in zip(
        sorted(ours.named_parameters()), sorted(theirs.named_parameters()), strict=True
    ):
        assert name == other
        assert actual.grad is not None
        assert expected.grad is not None
        parity(
            component=component,
            quantity=f"grad {name}",
            levels="v2-v1",
            actual=actual.grad,
            expected=expected.grad,
            tolerance=tolerance,
        )


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Double precision and random parameters, so that no bias is 0 and no gain is 1."""
    module = module.double()
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.from_numpy(array(seed, *parameter.shape, scale=0.3)))
            if parameter.ndim == 1:
                parameter += 1
    return module
