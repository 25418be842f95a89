"""Are the derivatives right? Compare them with finite differences, along random directions.

For f with inputs x, take random weights r for its outputs and a random direction u for one input. Then

    d/de  <r, f(x + e u)>   at e = 0   equals   <gradient of <r, f(x)>, u>

The left side is measured by (L(x + e u) − L(x − e u)) / 2e, with an error of O(e²), the right side comes from `backward`. One
random direction touches every entry of the Jacobian, so two evaluations do what a loop over all entries does with 2 n of
them, and a wrong entry escapes with probability zero. Float64 only: float32 differences drown in rounding.
(Griewank & Walther 2008, section 3.2; levels 1 and 2 rely on torch, whose `torch.autograd.gradcheck` has a `fast_mode` like this.)

    uv run python -c "from v3_numpy_deep.autograd.gradcheck import gradcheck; import numpy as np; print(gradcheck(lambda x: x * x, np.ones(3)))"
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from v3_numpy_deep.autograd.tensor import Array, Tensor


def gradcheck(
    function: Callable[..., Tensor], *inputs: Array, directions: int = 3, step: float = 1e-6, seed: int = 0
) -> float:
    """The largest error between `backward` and finite differences, relative to the size of the derivative (at least 1).

    `function` takes one tensor for each of `inputs` (float64) and returns a tensor. A correct derivative gives about
    1e-9; a wrong one gives 0.01 to 10.
    """
    assert all(x.dtype == np.float64 for x in inputs), "gradcheck needs float64 inputs"
    generator = np.random.default_rng(seed)
    tensors = [Tensor(x.copy(), requires_grad=True) for x in inputs]
    output = function(*tensors)
    weights = np.asarray(generator.standard_normal(output.shape))
    output.backward(weights)
    worst = 0.0
    for index, (x, tensor) in enumerate(zip(inputs, tensors, strict=True)):
        assert tensor.grad is not None, f"input {index} received no gradient"
        for _ in range(directions):
            direction = np.asarray(generator.standard_normal(x.shape))

            after, before = (_moved(function, inputs, index, e * direction) for e in (step, -step))
            measured = float((weights * (after - before)).sum()) / (2 * step)
            claimed = float((tensor.grad * direction).sum())
            worst = max(worst, abs(measured - claimed) / max(1.0, abs(measured)))
    return worst


def _moved(function: Callable[..., Tensor], inputs: tuple[Array, ...], index: int, change: Any) -> Array:
    """The output after one input has changed."""
    moved = [x + change if i == index else x for i, x in enumerate(inputs)]
    return function(*map(Tensor, moved)).data
