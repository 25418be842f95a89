"""QLoRA: the frozen base in 4 bits, adapters in full precision on top (Dettmers et al. 2023).

NF4 (section 3, "4-bit NormalFloat"): blocks of 64 weights share a scale, their largest magnitude; each weight is one of 16
levels, placed where a normal distribution has its quantiles. Double quantization: the scales, less their mean, are stored
in 8 bits. A layer decodes its weight for each product, and again in the backward pass, so that only codes stay in memory.

Level 1: bitsandbytes. Level 3: the same in NumPy. Theory: qlora.md.

    uv run python -c "import torch; from v2_handwritten.models.peft.qlora import *; x = torch.randn(2, 64); print(dequantize_nf4(quantize_nf4(x)) - x)"
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from shared_data.peft.config import QuantizationConfig
from shared_data.peft.layers import ReplacesLinear
from shared_data.peft.nf4 import NF4_CODES, SCALES_PER_BLOCK, SMALLEST_SCALE, dynamic_codes, levels_of_bytes
from shared_data.peft.target_modules import select_plain_layers
from v2_handwritten.models.blocks.linear import Conv1D, linear


@dataclass
class QuantizedTensor:
    """A tensor in 4 bits an element, and what is needed to decode it."""

    codes: UInt8[Tensor, " packed"]  # two codes a byte, the first in the high bits
    # Largest magnitude of each block, or its code.
    scales: Float[Tensor, " blocks"] | UInt8[Tensor, " blocks"]
    shape: tuple[int, ...]
    block_size: int
    nested_scales: Float[Tensor, " groups"] | None = None  # with double quantization: the scales' scales
    offset: Float[Tensor, ""] | None = None  # and their mean


def quantize_nf4(
    x: Float[Tensor, "*shape"], block_size: int = 64, double_quantization: bool = True
) -> QuantizedTensor:
    """Round every element to the nearest of the 16 levels times its block's scale. Blocks run through the flat tensor."""
    flat = x.detach().reshape(-1).float()
    scales, normalized = _normalize(flat, block_size)
    levels = torch.tensor(NF4_CODES, device=x.device)
    codes = _nearest(normalized, levels)
    if len(codes) % 2:  # a half byte is left over
        codes = torch.cat([codes, _nearest(codes.new_zeros(1, dtype=torch.float32), levels)])
    quantized = QuantizedTensor(codes[::2] << 4 | codes[1::2], scales, tuple(x.shape), block_size)
    if double_quantization:
        _encode_scales(quantized)
    return quantized


def dequantize_nf4(quantized: QuantizedTensor) -> Float[Tensor, "..."]:
    """Each element's level times its block's scale, in float32."""
    # Both levels of a byte are read at once, as if they were one number of 8 bytes: ten times as fast as one by one.
    pairs = _levels_of_bytes_on(quantized.codes.device).view(torch.int64).flatten()
    values = pairs.index_select(0, quantized.codes.int()).view(torch.float32)
    values = values[: math.prod(quantized.shape)]
    return _scale_blocks(values, _decoded_scales(quantized), quantized.block_size).view(quantized.shape)


class QuantizedLinear(ReplacesLinear, nn.Module):
    """Stands in place of a `Linear` or `Conv1D`, with its weight in 4 bits, always as [out, in]. It does not train.

    `compute_dtype` as in `Linear`; where it is None, products are computed in the type that the weight had.
    """

    def __init__(
        self,
        base: nn.Module,
        block_size: int = 64,
        double_quantization: bool = True,
        quantized: QuantizedTensor | None = None,
    ) -> None:
        super().__init__()
        layer: Any = base
        weight = layer.weight.detach()
        if quantized is None:
            plain = weight.T if isinstance(base, Conv1D) else weight
            quantized = quantize_nf4(plain, block_size, double_quantization)
        self.dtype, self.compute_dtype = weight.dtype, layer.compute_dtype
        self.bias = layer.bias
        self.from_conv1d = isinstance(base, Conv1D)  # a checkpoint has this weight as [in, out]
        self.shape, self.block_size = quantized.shape, quantized.block_size
        for name in ("codes", "scales", "nested_scales", "offset"):  # buffers follow the module to its device
            self.register_buffer(name, getattr(quantized, name))
        self.train(base.training)

    @property
    def quantized(self) -> QuantizedTensor:
        """The codes of the weight."""
        buffers = dict(self.named_buffers())
        return QuantizedTensor(shape=self.shape, block_size=self.block_size, **buffers)

    @property
    def weight(self) -> Float[Tensor, "O I"]:
        """The weight, decoded."""
        return dequantize_nf4(self.quantized).to(self.dtype)

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
        """x Wᵀ + b with the decoded weight."""
        dtype = self.compute_dtype or self.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return _DecodedProduct.apply(x.to(dtype), self.quantized, bias)


class _DecodedProduct(torch.autograd.Function):
    """y = x Wᵀ + b and dx = dy W, each with a weight that is decoded for the moment; W itself has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: QuantizedTensor, bias: Tensor | None) -> Tensor:
        ctx.quantized = quantized
        return linear(x, dequantize_nf4(quantized).to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        d_x = d_bias = None
        if ctx.needs_input_grad[0]:
            d_x = d_y @ dequantize_nf4(ctx.quantized).to(d_y.dtype)
        if ctx.needs_input_grad[2]:
            d_bias = d_y.flatten(0, -2).sum(0)
        return d_x, None, d_bias


def quantize_model(model: nn.Module, config: QuantizationConfig) -> None:
    """Replace linear layers of the blocks by quantized ones; embeddings, norms and the output matrix stay as they are.

    Load weights and set `compute_dtype` before, adapters after. Raises `UserError` for a layer that carries adapters already.
    """
    for place in select_plain_layers(model, config.target_modules):
        place.replace(QuantizedLinear(place.layer, config.block_size, config.double_quantization))


def _normalize(flat: Float[Tensor, " n"], block_size: int) -> tuple[Tensor, Tensor]:
    """The largest magnitude of each block, and all elements divided by that of theirs; the last block may be shorter."""
    n = len(flat)
    blocks = nn.functional.pad(flat, (0, -n % block_size)).view(-1, block_size)
    scales = blocks.abs().amax(dim=1)
    # bitsandbytes multiplies by the inverse; dividing would round a few elements to another level.
    inverses = scales.clamp(min=SMALLEST_SCALE).reciprocal().unsqueeze(1)
    return scales, (blocks * inverses).clamp_(-1, 1).flatten()[:n]


def _encode_scales(quantized: QuantizedTensor) -> None:
    """Double quantization (section 3): the scales less their mean, in blocks of 256, as codes of 8 bits."""
    scales = quantized.scales
    quantized.offset = scales.mean()
    quantized.nested_scales, normalized = _normalize(scales - quantized.offset, SCALES_PER_BLOCK)
    if not scales.is_cuda:
        # On a CPU, bitsandbytes looks codes up in a table of 65,536 entries: the values are rounded to its grid first.
        entry = ((normalized + 1) * 0.5 * 65535 + 0.5).floor()
        normalized = 2 * entry / 65535 - 1
    codes = _nearest(normalized, _dynamic_codes_on(scales.device))
    is_zero = _scale_blocks(torch.ones_like(normalized), quantized.nested_scales, SCALES_PER_BLOCK) == 0
    quantized.scales = codes.masked_fill_(is_zero, 0)  # where all scales are the mean, any code would do


def _nearest(values: Float[Tensor, " n"], levels: Float[Tensor, " k"]) -> UInt8[Tensor, " n"]:
    """Index of the nearest of the sorted levels: how many midpoints between neighbours lie below."""
    midpoints = (levels[:-1] + levels[1:]) / 2
    return torch.bucketize(values, midpoints).to(torch.uint8)


def _decoded_scales(quantized: QuantizedTensor) -> Float[Tensor, " blocks"]:
    """The scale of each block, in float32."""
    if quantized.nested_scales is None or quantized.offset is None:
        return quantized.scales
    values = _dynamic_codes_on(quantized.scales.device)[quantized.scales.long()]
    return _scale_blocks(values, quantized.nested_scales, SCALES_PER_BLOCK) + quantized.offset


def _scale_blocks(
    values: Float[Tensor, " n"], scales: Float[Tensor, " blocks"], block_size: int
) -> Float[Tensor, " n"]:
    """Every element times the scale of its block; the last block may be shorter."""
    n = len(values)
    padded = nn.functional.pad(values, (0, -n % block_size)) if n % block_size else values
    return (padded.view(-1, block_size) * scales.unsqueeze(1)).flatten()[:n]


@functools.cache
def _dynamic_codes_on(device: torch.device) -> Float[Tensor, "256"]:
    """The levels of the scales, moved once to each device."""
    return torch.from_numpy(dynamic_codes()).to(device)


@functools.cache
def _levels_of_bytes_on(device: torch.device) -> Float[Tensor, "256 2"]:
    """The two levels of each byte, moved once to each device."""
    return torch.from_numpy(levels_of_bytes()).to(device)
