"""int8: each row of a weight has one scale, its largest magnitude; activations are rounded too, but for outliers.

    codes = round(127 w / absmax),    w ≈ codes · absmax / 127                                        for each row (output channel) of W

LLM.int8 (Dettmers et al. 2022, section 3): x is rounded the same way, row by row, so that the product is one of integers. A few input
features are far larger than the others, and one of them would take the resolution from its whole row. Columns of x with a magnitude of
6 or more (`threshold`) therefore stay in floating point, and so does their part of the product.

Level 1: bitsandbytes' `Linear8bitLt`. Level 3: the same in NumPy. Theory: quantization.md.

    uv run python -c "import torch; from v2_handwritten.models.quantization.int8 import *; print(quantize_int8(torch.randn(2, 4)))"
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from shared_data.peft.layers import ReplacesLinear
from shared_data.quantization.config import OUTLIER_THRESHOLD, Quantization
from v2_handwritten.models.blocks.linear import Conv1D, linear

LEVELS = 127  # codes are -127 … 127


@dataclass
class Int8Tensor:
    """A matrix of codes, and the largest magnitude of each of its rows."""

    codes: Int8[Tensor, "O I"]
    absmax: Float[Tensor, " O"]


def quantize_int8(weight: Float[Tensor, "O I"]) -> Int8Tensor:
    """Round each element to the nearest of 255 levels of its row. The weight passes through float16, as in bitsandbytes."""
    return _round_rows(weight.detach().half())


def dequantize_int8(quantized: Int8Tensor, dtype: torch.dtype = torch.float32) -> Float[Tensor, "O I"]:
    """codes · absmax / 127"""
    return quantized.codes.to(dtype) * (quantized.absmax * (1 / LEVELS)).unsqueeze(1)


def int8_linear(
    x: Float[Tensor, "*rows I"],
    codes: Int8[Tensor, "O I"],
    scale: Float[Tensor, "O"],
    bias: Float[Tensor, "O"] | None = None,
) -> Float[Tensor, "*rows O"]:
    """(x codesᵀ) · scale + b: only the weight is rounded. `scale` is absmax / 127; the product reads one byte a weight.

    Sums of codes leave the range of float16 (65,504), so that the product is one of float32 at least.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    y = linear(x.to(dtype), codes.to(dtype)) * scale.to(dtype)
    return (y if bias is None else y + bias).to(x.dtype)


def llm_int8_linear(
    x: Float[Tensor, "*rows I"],
    codes: Int8[Tensor, "O I"],
    scale: Float[Tensor, "O"],
    bias: Float[Tensor, "O"] | None = None,
    threshold: float = OUTLIER_THRESHOLD,
) -> Float[Tensor, "*rows O"]:
    """x is rounded as well, row by row, but for columns with outliers (equation 8 of the paper).

    x Wᵀ ≈ x_outliers W_outliersᵀ + (codes_x codesᵀ) · (absmax_x / 127) · scale
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows, scale = x.reshape(-1, x.shape[-1]).to(dtype), scale.to(dtype)
    half = rows.half()
    is_outlier = half.abs() >= threshold if threshold > 0 else torch.zeros_like(half, dtype=torch.bool)
    columns = is_outlier.any(0)
    rounded = _round_rows(half.masked_fill(is_outlier, 0))
    # Sums of products of integers, which float32 holds exactly as long as they are below 2^24.
    integers = rounded.codes.masked_fill(columns, 0).to(dtype) @ codes.to(dtype).T
    y = integers * (rounded.absmax * (1 / LEVELS)).unsqueeze(1) * scale
    if columns.any():
        y = y + rows[:, columns] @ (codes[:, columns].to(dtype) * scale.unsqueeze(1)).T
    y = y if bias is None else y + bias
    return y.to(x.dtype).view(*x.shape[:-1], len(codes))


class Int8Linear(ReplacesLinear, nn.Module):
    """Stands in place of a `Linear` or `Conv1D`, with its weight in 8 bits, always as [out, in]. It does not train.

    In evaluation it computes as LLM.int8; in training (of adapters around it) only its weight is rounded, as bitsandbytes does on a CPU.
    """

    def __init__(
        self, base: nn.Module, quantized: Int8Tensor | None = None, threshold: float = OUTLIER_THRESHOLD
    ) -> None:
        super().__init__()
        layer: Any = base
        self.from_conv1d = isinstance(base, Conv1D)  # a checkpoint has this weight as [in, out]
        if quantized is None:
            quantized = quantize_int8(layer.weight.T if self.from_conv1d else layer.weight)
        self.codes: Tensor
        self.absmax: Tensor
        self.register_buffer("codes", quantized.codes)
        self.register_buffer("absmax", quantized.absmax)
        self.bias, self.compute_dtype, self.threshold = layer.bias, layer.compute_dtype, threshold
        self.train(base.training)

    @property
    def scale(self) -> Float[Tensor, " O"]:
        """What a code of each row stands for."""
        return self.absmax * (1 / LEVELS)

    @property
    def weight(self) -> Float[Tensor, "O I"]:
        """The weight, decoded."""
        return dequantize_int8(Int8Tensor(self.codes, self.absmax))

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
        """x Wᵀ + b."""
        x = x.to(self.compute_dtype or x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.training:
            return int8_linear(x, self.codes, self.scale, bias)
        return llm_int8_linear(x, self.codes, self.scale, bias, self.threshold)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds in place of the weight, by the ends of the names."""
        rows = torch.zeros((), dtype=torch.uint8)  # the layout: row by row
        return {"weight": self.codes, "SCB": self.absmax.float(), "weight_format": rows}

    @classmethod
    def from_tensors(
        cls, base: nn.Module, tensors: dict[str, Tensor], quantization: Quantization
    ) -> "Int8Linear":
        """The layer that a checkpoint holds in place of `base`."""
        return cls(base, Int8Tensor(tensors["weight"], tensors["SCB"].float()), quantization.threshold)


def _round_rows(x: Float[Tensor, "rows n"]) -> Int8Tensor:
    """Codes of each row, and its largest magnitude; a row of zeros has zeros as codes."""
    absmax = x.abs().amax(1).float()
    factors = torch.where(absmax > 0, LEVELS / absmax, 0)
    return Int8Tensor((x * factors.unsqueeze(1)).round().to(torch.int8), absmax)
