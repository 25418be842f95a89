"""int8: each row of a weight has one scale, its largest magnitude; activations are rounded too, but for outliers.

    codes = round(127 w / absmax),    w ≈ codes · absmax / 127                                        for each row (output channel) of W

LLM.int8 (Dettmers et al. 2022, section 3): x is rounded the same way, row by row, so that the product is one of integers. A few input
features are far larger than the others, and one of them would take the resolution from its whole row. Columns of x with a magnitude of
6 or more (`threshold`) therefore stay in floating point, and so does their part of the product.

Level 1: bitsandbytes' `Linear8bitLt`. Level 2: the same in torch. Theory: v2_handwritten/models/quantization/quantization.md.

    uv run python -c "import numpy as np; from v3_numpy_deep.models.quantization.int8 import *; print(quantize_int8(np.random.randn(2, 4)))"
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int8

from shared_data.peft.layers import ReplacesLinear
from shared_data.quantization.config import OUTLIER_THRESHOLD, Quantization
from v3_numpy_deep.autograd import Array, Module, Tensor
from v3_numpy_deep.autograd.fused.linear import linear
from v3_numpy_deep.models.blocks.linear import Conv1D

LEVELS = 127  # codes are -127 … 127


@dataclass
class Int8Tensor:
    """A matrix of codes, and the largest magnitude of each of its rows."""

    codes: Int8[Array, "O I"]
    absmax: Float[Array, " O"]


def quantize_int8(weight: Float[Array, "O I"]) -> Int8Tensor:
    """Round each element to the nearest of 255 levels of its row. The weight passes through float16, as in bitsandbytes."""
    return _round_rows(weight.astype(np.float16))


def dequantize_int8(quantized: Int8Tensor, dtype: Any = np.float32) -> Float[Array, "O I"]:
    """codes · absmax / 127"""
    return quantized.codes.astype(dtype) * (quantized.absmax * np.float32(1 / LEVELS))[:, None]


def int8_linear(
    x: Float[Tensor, "*rows I"],
    codes: Int8[Array, "O I"],
    scale: Float[Array, "O"],
    bias: Float[Tensor, "o"] | None = None,
) -> Float[Tensor, "*rows o"]:
    """(x codesᵀ) · scale + b: only the weight is rounded. `scale` is absmax / 127."""
    # The derivative needs the product with the codes only: dx = (dy · scale) codes.
    y = linear(x, Tensor(codes.astype(x.dtype))) * Tensor(scale.astype(x.dtype))
    return y if bias is None else y + bias


def llm_int8_linear(
    x: Float[Tensor, "*rows I"],
    codes: Int8[Array, "O I"],
    scale: Float[Array, "O"],
    bias: Float[Tensor, "o"] | None = None,
    threshold: float = OUTLIER_THRESHOLD,
) -> Float[Tensor, "*rows o"]:
    """x is rounded as well, row by row, but for columns with outliers (equation 8 of the paper). No gradient flows through it.

    x Wᵀ ≈ x_outliers W_outliersᵀ + (codes_x codesᵀ) · (absmax_x / 127) · scale
    """
    rows = x.data.reshape(-1, x.shape[-1])
    half = rows.astype(np.float16)
    is_outlier = np.abs(half) >= threshold if threshold > 0 else np.zeros(half.shape, bool)
    columns = is_outlier.any(axis=0)
    rounded = _round_rows(np.where(is_outlier, np.float16(0), half))
    # Sums of products of integers, which floating point holds exactly as long as they are below 2^24; BLAS has no integers.
    integers = np.where(columns, 0, rounded.codes).astype(x.dtype) @ codes.astype(x.dtype).T
    y = integers * (rounded.absmax * np.float32(1 / LEVELS))[:, None] * scale.astype(x.dtype)
    if columns.any():
        y += rows[:, columns] @ (codes[:, columns].astype(x.dtype) * scale[:, None]).T.astype(x.dtype)
    if bias is not None:
        y += bias.data
    return Tensor(y.reshape(*x.shape[:-1], len(codes)))


class Int8Linear(ReplacesLinear, Module):
    """Stands in place of a `Linear` or `Conv1D`, with its weight in 8 bits, always as [out, in]. It does not train.

    In evaluation it computes as LLM.int8; in training (of adapters around it) only its weight is rounded, as bitsandbytes does on a CPU.
    """

    def __init__(
        self, base: Module, quantized: Int8Tensor | None = None, threshold: float = OUTLIER_THRESHOLD
    ) -> None:
        super().__init__()
        self.from_conv1d = isinstance(base, Conv1D)  # a checkpoint has this weight as [in, out]
        if quantized is None:
            weight = base.weight.data
            quantized = quantize_int8(weight.T if self.from_conv1d else weight)
        self.codes, self.absmax = quantized.codes, quantized.absmax
        self.bias, self.threshold = base.bias, threshold
        self.train(base.training)

    @property
    def scale(self) -> Float[Array, " O"]:
        """What a code of each row stands for."""
        return self.absmax * np.float32(1 / LEVELS)

    @property
    def weight(self) -> Float[Tensor, "O I"]:
        """The weight, decoded."""
        return Tensor(dequantize_int8(Int8Tensor(self.codes, self.absmax)))

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows o"]:
        """x Wᵀ + b."""
        if self.training:
            return int8_linear(x, self.codes, self.scale, self.bias)
        return llm_int8_linear(x, self.codes, self.scale, self.bias, self.threshold)

    def tensors(self) -> dict[str, Array]:
        """What a checkpoint holds in place of the weight, by the ends of the names."""
        rows = np.zeros((), np.uint8)  # the layout: row by row
        return {"weight": self.codes, "SCB": self.absmax, "weight_format": rows}

    @classmethod
    def from_tensors(
        cls, base: Module, tensors: dict[str, Array], quantization: Quantization
    ) -> "Int8Linear":
        """The layer that a checkpoint holds in place of `base`."""
        absmax = tensors["SCB"].astype(np.float32)
        return cls(base, Int8Tensor(tensors["weight"], absmax), quantization.threshold)


def _round_rows(x: Float[Array, "rows n"]) -> Int8Tensor:
    """Codes of each row, and its largest magnitude; a row of zeros has zeros as codes."""
    absmax = np.abs(x).max(axis=1).astype(np.float32)
    # As torch divides a number by a tensor; 127 / absmax would round a few elements to another level.
    factors = np.divide(1, absmax, out=np.zeros_like(absmax), where=absmax > 0) * np.float32(LEVELS)
    return Int8Tensor(np.rint(x * factors[:, None]).astype(np.int8), absmax)
