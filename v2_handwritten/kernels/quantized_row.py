"""One row times a quantized matrix, compiled: what a decode step of a quantized model spends its time on.

    y_o = Σ_i x_i w_oi,    w_oi a code of 8 or 4 bits with the scale of its row or its group

A decode step is limited by the bytes of the weights that it reads, and codes are few bytes. But torch has no product of a row and codes: it would decode
the matrix into memory, which moves more bytes than plain weights have. `torch.compile` writes a loop in C++ that decodes in registers.
The sums run over pieces of 64 inputs (int8) or over a group (int4): so many are added up side by side, which a processor does at once.

The plain versions are `llm_int8_linear` (models/quantization/int8.py) and `Int4Linear.forward` (int4.py). Theory: quantization.md.

    uv run python -c "import torch; from v2_handwritten.kernels.quantized_row import *; print(int8_row(torch.ones(64), torch.ones(2, 64, dtype=torch.int8), torch.ones(2)))"
"""

import functools
import math
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int8, Int32
from torch import Tensor

PIECE = 64  # inputs that are added up side by side


def mixed_row(x: Float[Tensor, "I"], threshold: float) -> Float[Tensor, "I"]:
    """What LLM.int8 multiplies the codes with: x, rounded to 255 levels but for its outliers."""
    half = x.half()
    is_outlier = half.abs() >= (threshold if threshold > 0 else math.inf)
    rest = half.masked_fill(is_outlier, 0).float()
    largest = rest.abs().amax()
    rounded = (rest * torch.where(largest > 0, 127 / largest, 0)).round() * (largest * (1 / 127))
    return torch.where(is_outlier, x, rounded)


def int8_row(
    x: Float[Tensor, "I"], codes: Int8[Tensor, "O I"], absmax: Float[Tensor, "O"]
) -> Float[Tensor, "O"]:
    """Σ_i x_i codes_oi · absmax_o / 127"""
    I = len(x)  # noqa: E741 - the letter of the house
    piece = math.gcd(I, PIECE)
    products = codes.view(-1, I // piece, piece).float() * x.view(I // piece, piece)
    return products.sum(1).sum(1) * (absmax * (1 / 127))


def int4_row(
    x: Float[Tensor, "I"],
    qweight: Int32[Tensor, "I8 O"],
    zeros: Float[Tensor, "G O"],
    scales: Float[Tensor, "G O"],
) -> Float[Tensor, "O"]:
    """Σ_g scale_go (Σ_{i in g} x_i code_io - zero_go Σ_{i in g} x_i), with the groups in order; eight codes in each number of `qweight`."""
    G, O = scales.shape  # noqa: E741
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=x.device)
    codes = (qweight.unsqueeze(1) >> shifts.unsqueeze(1) & 15).float().view(G, -1, O)
    groups = x.view(G, -1, 1)
    return (((codes * groups).sum(1) - zeros * groups.sum(1)) * scales).sum(0)


@functools.cache
def compiled(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Callable[..., Any]:
    """The function as a loop in C++, for arguments of these shapes: they never change, so nothing has to be checked at each call."""
    options: Any = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    return torch.compile(function, dynamic=False, isolate_recompiles=True, options=options)  # type: ignore[call-overload]


@functools.cache
def rows_of(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Callable[..., Any]:
    """The products of one row with matrices of these shapes, one after the other, as one compiled function of (x, their tensors)."""

    def products(x: Tensor, matrices: list[tuple[Any, ...]]) -> Tensor:
        return torch.cat([function(x, *tensors) for tensors in matrices])

    return compiled(products)


@functools.cache
def can_compile() -> bool:
    """Whether there is a C++ compiler; where there is none, one line says what that costs."""
    if shutil.which(os.environ.get("CXX", "c++")):
        if sys.stderr.isatty():
            print("[compiling the products of quantized weights: some seconds]", file=sys.stderr)
        return True
    print(
        "[quantized weights are decoded into memory for each token, which is slow: there is no C++ compiler]",
        file=sys.stderr,
    )
    return False
