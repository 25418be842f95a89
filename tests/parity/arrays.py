"""The one deterministic source of inputs for parity tests: the same NumPy arrays go into all three levels."""

from typing import Any

import numpy as np


def array(seed: int, *shape: int, scale: float = 1.0, dtype: Any = np.float64) -> np.ndarray:
    """Normal numbers of the given shape; the same seed gives the same array everywhere."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def integers(seed: int, high: int, *shape: int) -> np.ndarray:
    """Uniform integers in [0, high), as int64."""
    return np.random.default_rng(seed).integers(0, high, shape, dtype=np.int64)
