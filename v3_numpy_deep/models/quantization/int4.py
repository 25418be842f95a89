"""int4: each group of neighbouring inputs of a row has a scale and a zero point; each weight is one of 16 levels between them.

    scale = (max - min) / 15,   zero = round(-min / scale),   code = round(w / scale) + zero in 0 … 15,   w ≈ (code - zero) · scale

min and max include 0, so that 0 is a level. Rounding each weight to its nearest level is the baseline (round-to-nearest, RTN); GPTQ and AWQ
(gptq.py, awq.py) choose codes or scales better, and store them the same way. Tensors are GPTQ's: shared_data/quantization/packing.py.

Level 1: torchao. Level 2: the same in torch. Theory: v2_handwritten/models/quantization/quantization.md.

    uv run python -c "import numpy as np; from v3_numpy_deep.models.quantization.int4 import *; print(quantize_int4(np.random.randn(2, 16), 8))"
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int32, UInt8

from shared_data.peft.layers import ReplacesLinear
from shared_data.quantization.config import Quantization
from shared_data.quantization.packing import pack_weight, pack_zeros, unpack_weight, unpack_zeros
from v3_numpy_deep.autograd import Array, Module, Tensor
from v3_numpy_deep.autograd.fused.linear import linear
from v3_numpy_deep.models.blocks.linear import Conv1D

LARGEST_CODE = 15
SMALLEST_SCALE = 2.0**-24  # the smallest number of float16, in which scales are stored


@dataclass
class Int4Tensor:
    """A matrix of codes, and the scale and the zero point of each group of inputs of a row."""

    codes: UInt8[Array, "O I"]
    scales: Float[Array, "O G"]  # numbers that float16 has
    zeros: UInt8[Array, "O G"]
    g_idx: Int32[Array, " I"]  # the group of each input


def fit_groups(weight: Float[Array, "*rows n"]) -> tuple[Float[Array, "*rows"], Float[Array, "*rows"]]:
    """Scale and zero point of groups, each along the last axis."""
    low, high = weight.min(axis=-1, initial=0), weight.max(axis=-1, initial=0)
    scale = np.maximum((high - low) / LARGEST_CODE, weight.dtype.type(SMALLEST_SCALE))
    zero = np.clip(np.rint(-low / scale), 0, LARGEST_CODE)
    return scale.astype(np.float32).astype(np.float16).astype(weight.dtype), zero


def encode(weight: Array, scale: Array, zero: Array) -> Array:
    """The code of the level that is nearest to each weight, as a number."""
    return np.clip(np.rint(weight / scale) + zero, 0, LARGEST_CODE)


def decode(codes: Array, scale: Array, zero: Array) -> Array:
    """(code - zero) · scale"""
    return (codes - zero) * scale


def quantize_int4(weight: Float[Array, "O I"], group_size: int) -> Int4Tensor:
    """Round each weight to the nearest of the 16 levels of its group. `group_size` divides I."""
    O, I = weight.shape  # noqa: E741 - out and in
    groups = weight.astype(np.promote_types(weight.dtype, np.float32)).reshape(O, -1, group_size)
    scales, zeros = fit_groups(groups)
    codes = encode(groups, scales[..., None], zeros[..., None])
    g_idx = np.arange(I, dtype=np.int32) // group_size
    return Int4Tensor(codes.reshape(O, I).astype(np.uint8), scales, zeros.astype(np.uint8), g_idx)


def dequantize_int4(quantized: Int4Tensor, dtype: Any = np.float32) -> Float[Array, "O I"]:
    """Each weight from the scale and the zero point of its group."""
    scales, zeros = quantized.scales.astype(dtype), quantized.zeros.astype(dtype)
    group = quantized.g_idx
    return decode(quantized.codes.astype(dtype), scales[:, group], zeros[:, group])


def pack_int4(quantized: Int4Tensor) -> dict[str, Array]:
    """The tensors of a checkpoint: qweight [I / 8, O] and qzeros [G, O / 8] (int32), scales [G, O] (float16), g_idx [I]."""
    return {
        "qweight": pack_weight(quantized.codes),
        "qzeros": pack_zeros(quantized.zeros),
        "scales": np.ascontiguousarray(quantized.scales.T).astype(np.float16),
        "g_idx": quantized.g_idx,
    }


class Int4Linear(ReplacesLinear, Module):
    """Stands in place of a `Linear` or `Conv1D`, with its weight packed in 4 bits, as `pack_int4` does. It does not train.

    `shifted_zeros`: the zero points in `qzeros` are less 1, as in files of the format "gptq".
    """

    def __init__(self, base: Module, packed: dict[str, Array], shifted_zeros: bool = True) -> None:
        super().__init__()
        self.packed = packed
        self.shifted_zeros, self.bias = shifted_zeros, base.bias
        self.from_conv1d = isinstance(base, Conv1D)  # a checkpoint has this weight as [in, out]
        self.train(base.training)

    def decoded(self, dtype: Any) -> Float[Array, "O I"]:
        """The weight, decoded."""
        codes = unpack_weight(self.packed["qweight"])
        zeros = unpack_zeros(self.packed["qzeros"], self.shifted_zeros)
        return dequantize_int4(Int4Tensor(codes, self.packed["scales"].T, zeros, self.packed["g_idx"]), dtype)

    @property
    def weight(self) -> Float[Tensor, "O I"]:
        """The weight, decoded."""
        return Tensor(self.decoded(np.float32))

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows o"]:
        """x Wᵀ + b with the decoded weight."""
        return linear(x, Tensor(self.decoded(x.dtype)), self.bias)

    def tensors(self) -> dict[str, Array]:
        """What a checkpoint holds in place of the weight, by the ends of the names."""
        half = self.packed["scales"].astype(np.float16)  # reading has widened them
        is_exact = bool(np.all(half == self.packed["scales"]))
        return self.packed | ({"scales": half} if is_exact else {})

    @classmethod
    def from_tensors(
        cls, base: Module, tensors: dict[str, Array], quantization: Quantization
    ) -> "Int4Linear":
        """The layer that a checkpoint holds in place of `base`."""
        return cls(base, tensors, quantization.shifted_zeros)
