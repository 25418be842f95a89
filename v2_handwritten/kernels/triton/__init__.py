"""Kernels in Triton: programs for an NVIDIA GPU, written in Python, one for each block of a result.

They belong to the choice `fused`, whose functions take them where the tensors lie on a GPU and Triton is installed; it is no requirement
of the commands. Theory: kernels/fused/flash_attention.md, its section on GPUs.

    TRITON_INTERPRET=1 uv run pytest -n0 tests/v2/test_triton_attention.py   # on a CPU, line by line
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

from jaxtyping import Float
from torch import Tensor

from v2_handwritten.models.blocks.attention_mask import AttentionMask

_is_installed = cache(find_spec)


def triton_attention(
    q: Float[Tensor, "B H T D"], v: Float[Tensor, "B K S Dv"], mask: AttentionMask
) -> Callable[..., Tensor] | None:
    """`flash_attention` in Triton where it runs and covers the case; else None, and attention stays with torch's tiles."""
    if not q.is_cuda or not _is_installed("triton"):
        return None
    from v2_handwritten.kernels.triton.flash_attention import (
        covers,
        flash_attention,
    )  # only now: it needs Triton

    return flash_attention if covers(q, v, mask) else None
