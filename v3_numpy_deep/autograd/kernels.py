"""Which version of a formula is computed: the plain one in models/blocks, or a fused operation of the same name and signature.

    plain     the formula over primitive operations, differentiated by the engine
    fused     one operation with a derivative of its own (fused/); where there is none, the plain formula

Level 1: `attn_implementation`. Level 2 has torch's own kernels as a third choice.

    uv run python -c "from v3_numpy_deep.autograd.kernels import kernel; from v3_numpy_deep.models.blocks.normalization import rms_norm; print(kernel('fused', rms_norm))"
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from shared_data.errors import UserError

KERNELS = ("plain", "fused")

F = TypeVar("F", bound=Callable[..., Any])


def kernel(choice: str, plain: F) -> F:
    """The version of the function `plain` that `choice` names. Raises `UserError` for an unknown choice."""
    return plain if choice == "plain" else _find(choice, plain)


@functools.cache
def _find(choice: str, plain: Any) -> Any:
    if choice not in KERNELS:
        raise UserError(f"level 3 has no kernels {choice!r}; choose one of {', '.join(KERNELS)}")
    fused = importlib.import_module("v3_numpy_deep.autograd.fused")  # only now: it uses the blocks
    return getattr(fused, plain.__name__, plain)
