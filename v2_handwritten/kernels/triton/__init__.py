"""Kernels in Triton: programs for an NVIDIA GPU, written in Python, one for each block of a result.

They belong to the choice `fused`, whose functions take them where the tensors lie on a GPU and Triton is installed; it is no requirement
of the commands. Theory: kernels/fused/flash_attention.md, its section on GPUs.

    TRITON_INTERPRET=1 uv run pytest -n0 tests/v2/test_triton_attention.py   # on a CPU, line by line
"""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor

from v2_handwritten.models.blocks.attention_mask import AttentionMask

OLDEST_GPU = (8, 0)  # Ampere, 2020: those before have too little fast memory for the blocks
HAS_TRITON = find_spec("triton") is not None  # looked for, not imported


def triton_attention(
    q: Float[Tensor, "B H T D"], v: Float[Tensor, "B K S Dv"], mask: AttentionMask
) -> Callable[..., Tensor] | None:
    """`flash_attention` in Triton where it runs and covers the case; else None, and attention stays with torch's tiles."""
    if not q.is_cuda or not HAS_TRITON or torch.cuda.get_device_capability(q.device) < OLDEST_GPU:
        return None
    from v2_handwritten.kernels.triton import flash_attention  # only now: it imports Triton

    return flash_attention.flash_attention if flash_attention.covers(q, v, mask) else None
