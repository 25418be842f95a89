"""Two small graphs differentiated by hand, as in v3_numpy_deep/autograd/tensor.md, against the engine of level 3."""

from typing import Any

import numpy as np

from tests.worked import agrees
from v3_numpy_deep.autograd import Tensor, record

PAGE = "v3_numpy_deep/autograd/tensor.md"


def leaf(values: Any) -> Tensor:
    return Tensor(np.array(values, dtype=float), requires_grad=True)


def test_a_residual_connection() -> None:
    """L = (w x + x - 5)²: x is read twice, so it receives two gradients."""
    gradients: dict[str, float] = {}

    def watch(name: str, tensor: Tensor) -> Tensor:
        """The same tensor; the gradient that arrives at it is written down."""
        return record(tensor.data, (tensor,), lambda g: (gradients.setdefault(name, g),))

    w, x = leaf(3.0), leaf(2.0)
    p = watch("p", w * x)
    r = watch("r", p + x)
    d = watch("d", r - 5.0)
    L = watch("L", d * d)
    L.backward()
    assert list(gradients) == ["L", "d", "r", "p"], "children before parents"
    values = [[tensor.item(), gradients[name]] for name, tensor in (("L", L), ("d", d), ("r", r), ("p", p))]
    leaves = [[tensor.item(), tensor.grad.item()] for tensor in (x, w)]
    agrees(PAGE, "tensor", [*values, *leaves])


def test_a_layer_with_a_bias() -> None:
    """Y = X W + b, L = Σ Y² / 2, so that the gradient of Y is Y itself."""
    X, W, b = leaf([[1, 2], [3, 4], [0, -1]]), leaf([[1, 0], [-1, 2]]), leaf([1, -2])
    Y = X @ W + b
    ((Y * Y).sum() * 0.5).backward()
    agrees(PAGE, "Y", Y.data)
    agrees(PAGE, "∂X", X.grad)
    agrees(PAGE, "∂W", W.grad)
    agrees(PAGE, "∂b", b.grad[None])
