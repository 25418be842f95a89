"""Central differences of x³ with ten steps, as in v3_numpy_deep/autograd/gradcheck.md, and a wrong derivative that is found."""

import math

import numpy as np

from tests.worked import agrees
from v3_numpy_deep.autograd import record
from v3_numpy_deep.autograd.gradcheck import gradcheck

PAGE = "v3_numpy_deep/autograd/gradcheck.md"
EXPONENTS = range(-1, -11, -1)


def cube(x: float) -> float:
    return x * x * x


def test_the_error_of_a_central_difference_has_a_minimum() -> None:
    """Exact on every machine: IEEE arithmetic rounds sums, products and quotients in one way only."""
    errors = []
    for exponent in EXPONENTS:
        e = 10.0**exponent
        errors.append(abs((cube(1.0 + e) - cube(1.0 - e)) / (2 * e) - 3.0))
    agrees(PAGE, "log₁₀ ε", [[math.log10(error) for error in errors]], digits=1)


def test_a_forgotten_factor_is_found() -> None:
    x = np.array([0.5, 1.0, 2.0])
    right = gradcheck(lambda t: t * t * t, x)
    wrong = gradcheck(lambda t: record(t.data**3, (t,), lambda g: (g * t.data**2,)), x)
    assert right < 1e-8
    assert wrong > 0.1
