"""Faster versions of the formulas in models/blocks, with the same names and signatures, and how one of them is chosen.

    plain     the formula, differentiated by torch's autograd
    fused     the same in few passes over memory, with the derivative by hand (kernels/fused)
    library   torch's own function (kernels/library.py)

Where a choice has no version of its own, the plain one is used. Level 1: `attn_implementation`. Level 3: plain and fused.

    uv run python -c "from v2_handwritten.kernels import kernel; from v2_handwritten.models.blocks.normalization import rms_norm; print(kernel('fused', rms_norm))"
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

KERNELS = ("plain", "fused", "library")

F = TypeVar("F", bound=Callable[..., Any])


def kernel(choice: str, plain: F) -> F:
    """The version of the function `plain` that `choice` names."""
    if choice == "plain":
        return plain
    from v2_handwritten.kernels import fused, library  # only now: they use the blocks themselves

    version: Any = getattr(fused if choice == "fused" else library, plain.__name__, None)
    return cast(F, version) if callable(version) else plain  # a file of the same name is no version
