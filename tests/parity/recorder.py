"""Records every comparison between levels, so that a parity run ends with a table of measured errors.

A test takes the fixture `parity` and calls

    parity(component="attention", quantity="grad q_proj", levels="v2-v3", actual=a, expected=b, tolerance=1e-10)

which asserts `max |a - b| <= tolerance * max(1, max |b|)` and keeps the row. `conftest.py` collects the rows of all
workers, prints the table and writes `runs/parity.json`.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass
class Row:
    """One comparison: the largest absolute and relative difference, and what was allowed."""

    component: str
    quantity: str
    levels: str
    max_abs_error: float
    max_rel_error: float
    tolerance: float
    dtype: str
    passed: bool


def as_array(value: Any) -> np.ndarray:
    """NumPy view of a torch tensor, a level-3 tensor, a list or a number."""
    if hasattr(value, "detach"):
        value = value.detach()
    if hasattr(value, "numpy") and not isinstance(value, np.ndarray):
        value = value.float() if str(getattr(value, "dtype", "")) == "torch.bfloat16" else value
        value = value.numpy()
    elif hasattr(value, "data") and isinstance(value.data, np.ndarray):
        value = value.data
    return np.asarray(value)


class ParityRecorder:
    """Compares two arrays, remembers the measured error, and fails when it is above the tolerance."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def __call__(
        self, *, component: str, quantity: str, levels: str, actual: Any, expected: Any, tolerance: float
    ) -> None:
        """Assert that `actual` equals `expected` to `tolerance`, relative to the largest expected magnitude (at least 1)."""
        a, b = as_array(actual), as_array(expected)
        assert a.shape == b.shape, f"{component} {quantity}: shapes {a.shape} and {b.shape}"
        dtype = str(a.dtype)
        a, b = a.astype(np.float64), b.astype(np.float64)
        assert np.isfinite(a).all() == np.isfinite(b).all(), f"{component} {quantity}: one side is not finite"
        finite = np.isfinite(b)
        assert np.array_equal(a[~finite], b[~finite], equal_nan=True), (
            f"{component} {quantity}: infinities differ"
        )
        difference = np.abs(a[finite] - b[finite])
        absolute = float(difference.max()) if difference.size else 0.0
        scale = max(1.0, float(np.abs(b[finite]).max())) if difference.size else 1.0
        relative = absolute / scale
        passed = relative <= tolerance
        self.rows.append(
            Row(component, quantity, levels, absolute, relative, float(tolerance), dtype, bool(passed))
        )
        assert passed, (
            f"{component} {quantity} ({levels}): error {relative:.3g} is above the tolerance {tolerance:.3g}"
        )

    def each(self, pairs: dict[str, tuple[Any, Any]], **row: Any) -> None:
        """The same of several quantities: by name, what is and what is expected."""
        for quantity, (actual, expected) in pairs.items():
            self(quantity=quantity, actual=actual, expected=expected, **row)

    def as_dicts(self) -> list[dict[str, Any]]:
        """The rows as plain dictionaries, as `runs/parity.json` holds them."""
        return [asdict(row) for row in self.rows]
