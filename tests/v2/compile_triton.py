"""Compile the Triton kernels for GPUs that are not there, and print how much fast memory a program of each takes.

TRITON_INTERPRET=0 python -m tests.v2.compile_triton
"""

from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from v2_handwritten.kernels.triton import flash_attention_blocks as blocks
from v2_handwritten.kernels.triton.flash_attention import STAGES, block_size, padded_size

T, H, K = 256, 4, 2


class GpuOnPaper:
    """What Triton asks a GPU's driver for before it compiles."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def arguments_of(kernel: Any, D: int, dtype: torch.dtype, with_options: bool) -> list[Any]:
    """Tensors and numbers for each parameter, by its name."""
    q, k = (torch.empty(1, T, heads, D, dtype=dtype).transpose(1, 2) for heads in (H, K))
    numbers, sums = torch.empty(1, 3, T, dtype=torch.int32), torch.empty(1, H, T)
    known = {
        **dict.fromkeys(("q", "output", "d_output", "d_q"), q),
        **dict.fromkeys(("k", "v", "d_k", "d_v"), k),
        **dict.fromkeys(("intervals", "key_blocks", "query_blocks"), numbers),
        **dict.fromkeys(("log_sums", "delta"), sums),
        **{"plans": 1, "H": H, "G": H // K, "T": T, "S": T, "scale": 0.1, "D": D, "Dv": D},
        **{"BLOCK": block_size(q, k), "BLOCK_D": padded_size(D), "BLOCK_DV": padded_size(D)},
        "SOFTCAP": 30.0 if with_options else 0.0,
        "sinks": torch.empty(H) if with_options else None,
        "is_real": torch.empty(1, T, dtype=torch.bool) if with_options else None,
    }
    known |= {
        f"{name}_strides": x.stride()
        for name, x in known.items()
        if name in kernel.arg_names and torch.is_tensor(x)
    }
    return [known[name] for name in kernel.arg_names]


if __name__ == "__main__":
    for capability, D, dtype, with_options in (
        (86, 80, torch.bfloat16, True),
        (120, 64, torch.float16, False),
    ):
        driver.set_active(GpuOnPaper(capability))
        for kernel in (blocks.forward, blocks.query_gradients, blocks.key_value_gradients):
            arguments = arguments_of(kernel, D, dtype, with_options)
            compiled = kernel.warmup(*arguments, grid=(1,), num_stages=STAGES)
            assert compiled.metadata.target.arch == capability
            print(capability, D, dtype, kernel.__name__, compiled.metadata.shared)
