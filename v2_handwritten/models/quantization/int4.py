"""int4: each group of neighbouring inputs of a row has a scale and a zero point; each weight is one of 16 levels between them.

    scale = (max - min) / 15,   zero = round(-min / scale),   code = round(w / scale) + zero in 0 … 15,   w ≈ (code - zero) · scale

min and max include 0, so that 0 is a level. Rounding each weight to its nearest level is the baseline (round-to-nearest, RTN); GPTQ and AWQ
(gptq.py, awq.py) choose codes or scales better, and store them the same way. Tensors are GPTQ's: shared_data/quantization/packing.py.

Level 1: torchao. Level 3: the same in NumPy. Theory: quantization.md.

    uv run python -c "import torch; from v2_handwritten.models.quantization.int4 import *; print(quantize_int4(torch.randn(2, 16), 8))"
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor, nn

from shared_data.peft.layers import ReplacesLinear
from shared_data.quantization.config import Quantization
from shared_data.quantization.packing import pack_weight, pack_zeros
from v2_handwritten.models.blocks.linear import Conv1D, linear

LARGEST_CODE = 15
SMALLEST_SCALE = 2.0**-24  # the smallest number of float16, in which scales are stored


@dataclass
class Int4Tensor:
    """A matrix of codes, and the scale and the zero point of each group of inputs of a row."""

    codes: UInt8[Tensor, "O I"]
    scales: Float[Tensor, "O G"]  # numbers that float16 has
    zeros: UInt8[Tensor, "O G"]
    g_idx: Int32[Tensor, " I"]  # the group of each input


def fit_groups(weight: Float[Tensor, "*rows n"]) -> tuple[Float[Tensor, "*rows"], Float[Tensor, "*rows"]]:
    """Scale and zero point of groups, each along the last axis."""
    low, high = weight.amin(-1).clamp(max=0), weight.amax(-1).clamp(min=0)
    scale = ((high - low) / LARGEST_CODE).clamp(min=SMALLEST_SCALE)
    zero = (-low / scale).round().clamp(0, LARGEST_CODE)
    return scale.float().half().to(weight.dtype), zero


def encode(weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The code of the level that is nearest to each weight, as a number."""
    return ((weight / scale).round() + zero).clamp(0, LARGEST_CODE)


def decode(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """(code - zero) · scale"""
    return (codes - zero) * scale


def quantize_int4(weight: Float[Tensor, "O I"], group_size: int) -> Int4Tensor:
    """Round each weight to the nearest of the 16 levels of its group. `group_size` divides I."""
    O, I = weight.shape  # noqa: E741 - out and in
    groups = weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).view(O, -1, group_size)
    scales, zeros = fit_groups(groups)
    codes = encode(groups, scales.unsqueeze(-1), zeros.unsqueeze(-1))
    g_idx = torch.arange(I, dtype=torch.int32, device=weight.device) // group_size
    return Int4Tensor(codes.view(O, I).to(torch.uint8), scales, zeros.to(torch.uint8), g_idx)


def dequantize_int4(quantized: Int4Tensor, dtype: torch.dtype = torch.float32) -> Float[Tensor, "O I"]:
    """Each weight from the scale and the zero point of its group."""
    group = quantized.g_idx.long()
    scales, zeros = quantized.scales.to(dtype)[:, group], quantized.zeros.to(dtype)[:, group]
    return decode(quantized.codes.to(dtype), scales, zeros)


def pack_int4(quantized: Int4Tensor) -> dict[str, Tensor]:
    """The tensors of a checkpoint: qweight [I / 8, O] and qzeros [G, O / 8] (int32), scales [G, O] (float16), g_idx [I]."""
    device = quantized.scales.device
    codes, zeros = quantized.codes.cpu().numpy(), quantized.zeros.cpu().numpy()
    return {
        "qweight": torch.from_numpy(pack_weight(codes)).to(device),
        "qzeros": torch.from_numpy(pack_zeros(zeros)).to(device),
        "scales": quantized.scales.T.contiguous().half(),
        "g_idx": quantized.g_idx,
    }


class Int4Linear(ReplacesLinear, nn.Module):
    """Stands in place of a `Linear` or `Conv1D`, with its weight packed in 4 bits, as `pack_int4` does. It does not train.

    `shifted_zeros`: the zero points in `qzeros` are less 1, as in files of the format "gptq".
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor

    def __init__(self, base: nn.Module, packed: dict[str, Tensor], shifted_zeros: bool = True) -> None:
        super().__init__()
        layer: Any = base
        for name in ("qweight", "qzeros", "scales", "g_idx"):
            self.register_buffer(name, packed[name])
        self.shifted_zeros = shifted_zeros
        self.bias, self.compute_dtype = layer.bias, layer.compute_dtype
        self.from_conv1d = isinstance(base, Conv1D)  # a checkpoint has this weight as [in, out]
        self.train(base.training)

    def decoded(self, dtype: torch.dtype) -> Float[Tensor, "O I"]:
        """The weight, decoded; in memory it is transposed, as the codes are."""
        shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=self.qweight.device)
        codes = (self.qweight.unsqueeze(1) >> shifts.unsqueeze(1) & LARGEST_CODE).flatten(0, 1)  # [I, O]
        zeros = (self.qzeros.unsqueeze(2) >> shifts) + int(self.shifted_zeros) & LARGEST_CODE
        scales, zeros = self.scales.to(dtype)[self.g_idx], zeros.flatten(1).to(dtype)[self.g_idx]
        return decode(codes.to(dtype), scales, zeros).T

    @property
    def weight(self) -> Float[Tensor, "O I"]:
        """The weight, decoded."""
        return self.decoded(torch.float32)

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
        """x Wᵀ + b with the decoded weight."""
        x = x.to(self.compute_dtype or x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return linear(x, self.decoded(x.dtype), bias)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds in place of the weight, by the ends of the names."""
        half = self.scales.half()  # a model in float32 has widened them
        is_exact = torch.equal(half.to(self.scales.dtype), self.scales)
        return dict(self.named_buffers()) | ({"scales": half} if is_exact else {})

    @classmethod
    def from_tensors(
        cls, base: nn.Module, tensors: dict[str, Tensor], quantization: Quantization
    ) -> "Int4Linear":
        """The layer that a checkpoint holds in place of `base`."""
        return cls(base, tensors, quantization.shifted_zeros)
