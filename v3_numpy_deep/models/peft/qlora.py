"""QLoRA: the frozen base in 4 bits, adapters in full precision on top (Dettmers et al. 2023).

NF4 (section 3, "4-bit NormalFloat"): blocks of 64 weights share a scale, their largest magnitude; each weight is one of 16
levels, placed where a normal distribution has its quantiles. Double quantization: the scales, less their mean, are stored
in 8 bits. A layer decodes its weight for each product, and again in the backward pass, so that only codes stay in memory.

Level 1: bitsandbytes. Level 2: the same in torch. Theory: v2_handwritten/models/peft/qlora.md.

    uv run python -c "import numpy as np; from v3_numpy_deep.models.peft.qlora import *; x = np.random.randn(2, 64); print(dequantize_nf4(quantize_nf4(x)) - x)"
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from shared_data.peft.config import QuantizationConfig
from shared_data.peft.layers import ReplacesLinear
from shared_data.peft.nf4 import NF4_CODES, SCALES_PER_BLOCK, SMALLEST_SCALE, dynamic_codes, levels_of_bytes
from shared_data.peft.target_modules import select_plain_layers
from v3_numpy_deep.autograd import Array, Module, Tensor, record
from v3_numpy_deep.models.blocks.linear import Conv1D


@dataclass
class QuantizedTensor:
    """A tensor in 4 bits an element, and what is needed to decode it."""

    codes: UInt8[Array, " packed"]  # two codes a byte, the first in the high bits
    scales: Float[Array, " blocks"] | UInt8[Array, " blocks"]  # largest magnitude of each block, or its code
    shape: tuple[int, ...]
    block_size: int
    nested_scales: Float[Array, " groups"] | None = None  # with double quantization: the scales' scales
    offset: np.float32 | None = None  # and their mean


def quantize_nf4(
    x: Float[Array, "*shape"], block_size: int = 64, double_quantization: bool = True
) -> QuantizedTensor:
    """Round every element to the nearest of the 16 levels times its block's scale. Blocks run through the flat tensor."""
    flat = x.reshape(-1).astype(np.float32)
    scales, normalized = _normalize(flat, block_size)
    levels = np.array(NF4_CODES, np.float32)
    codes = _nearest(normalized, levels)
    if len(codes) % 2:  # a half byte is left over
        codes = np.append(codes, _nearest(np.zeros(1, np.float32), levels))
    quantized = QuantizedTensor(codes[::2] << 4 | codes[1::2], scales, tuple(x.shape), block_size)
    if double_quantization:
        _encode_scales(quantized)
    return quantized


def dequantize_nf4(quantized: QuantizedTensor) -> Float[Array, "..."]:
    """Each element's level times its block's scale, in float32."""
    # Both levels of a byte are read at once: several times as fast as one by one.
    values = levels_of_bytes().take(quantized.codes, axis=0).reshape(-1)
    values = values[: math.prod(quantized.shape)]
    return _scale_blocks(values, _decoded_scales(quantized), quantized.block_size).reshape(quantized.shape)


class QuantizedLinear(ReplacesLinear, Module):
    """Stands in place of a `Linear` or `Conv1D`, with its weight in 4 bits, always as [out, in]. It does not train.

    Products are computed in the type that the weight had.
    """

    def __init__(
        self,
        base: Module,
        block_size: int = 64,
        double_quantization: bool = True,
        quantized: QuantizedTensor | None = None,
    ) -> None:
        super().__init__()
        weight = base.weight.data
        if quantized is None:
            plain = weight.T if isinstance(base, Conv1D) else weight
            quantized = quantize_nf4(plain, block_size, double_quantization)
        self._quantized = quantized
        self.dtype = weight.dtype
        self.bias = base.bias
        self.from_conv1d = isinstance(base, Conv1D)  # a checkpoint has this weight as [in, out]
        self.train(base.training)

    @property
    def quantized(self) -> QuantizedTensor:
        """The codes of the weight."""
        return self._quantized

    @property
    def weight(self) -> Float[Tensor, "O I"]:
        """The weight, decoded."""
        return Tensor(dequantize_nf4(self.quantized).astype(self.dtype, copy=False))

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows o"]:
        """x Wᵀ + b with the decoded weight."""
        y = _decoded_product(x, self.quantized)
        return y if self.bias is None else y + self.bias


def _decoded_product(x: Tensor, quantized: QuantizedTensor) -> Tensor:
    """y = x Wᵀ and dx = dy W, each with a weight that is decoded for the moment; W itself has no gradient."""
    O, I = quantized.shape  # noqa: E741 - out and in
    dtype, shape = x.dtype, x.shape
    Y = x.data.reshape(-1, I) @ dequantize_nf4(quantized).astype(dtype, copy=False).T

    def derivative(g: Array) -> tuple[Array]:
        W = dequantize_nf4(quantized).astype(dtype, copy=False)
        return ((g.reshape(-1, O) @ W).reshape(shape),)

    return record(Y.reshape(*shape[:-1], O), (x,), derivative)


def quantize_model(model: Module, config: QuantizationConfig) -> None:
    """Replace linear layers of the blocks by quantized ones; embeddings, norms and the output matrix stay as they are.

    Load weights before, adapters after. Raises `UserError` for a layer that carries adapters already.
    """
    for place in select_plain_layers(model, config.target_modules):
        place.replace(QuantizedLinear(place.layer, config.block_size, config.double_quantization))


def _normalize(flat: Float[Array, " n"], block_size: int) -> tuple[Array, Array]:
    """The largest magnitude of each block, and all elements divided by that of theirs; the last block may be shorter."""
    n = len(flat)
    blocks = np.pad(flat, (0, -n % block_size)).reshape(-1, block_size)
    scales = np.abs(blocks).max(axis=1)
    # bitsandbytes multiplies by the inverse; dividing would round a few elements to another level.
    inverses = np.float32(1) / np.maximum(scales, np.float32(SMALLEST_SCALE))[:, None]
    return scales, np.clip(blocks * inverses, -1, 1).reshape(-1)[:n]


def _encode_scales(quantized: QuantizedTensor) -> None:
    """Double quantization (section 3): the scales less their mean, in blocks of 256, as codes of 8 bits."""
    scales = quantized.scales
    quantized.offset = np.float32(scales.mean(dtype=np.float64))
    quantized.nested_scales, normalized = _normalize(scales - quantized.offset, SCALES_PER_BLOCK)
    # On a CPU, bitsandbytes looks codes up in a table of 65,536 entries: the values are rounded to its grid first.
    entry = np.floor((normalized + 1) * np.float32(0.5) * 65535 + np.float32(0.5))
    codes = _nearest(2 * entry / 65535 - 1, dynamic_codes())
    is_zero = _scale_blocks(np.ones_like(normalized), quantized.nested_scales, SCALES_PER_BLOCK) == 0
    codes[is_zero] = 0  # where all scales are the mean, any code would do
    quantized.scales = codes


def _nearest(values: Float[Array, " n"], levels: Float[Array, " k"]) -> UInt8[Array, " n"]:
    """Index of the nearest of the sorted levels: how many midpoints between neighbours lie below."""
    midpoints = (levels[:-1] + levels[1:]) / 2
    return np.searchsorted(midpoints, values).astype(np.uint8)


def _decoded_scales(quantized: QuantizedTensor) -> Float[Array, " blocks"]:
    """The scale of each block, in float32."""
    if quantized.nested_scales is None or quantized.offset is None:
        return quantized.scales
    values = dynamic_codes()[quantized.scales]
    return _scale_blocks(values, quantized.nested_scales, SCALES_PER_BLOCK) + quantized.offset


def _scale_blocks(
    values: Float[Array, " n"], scales: Float[Array, " blocks"], block_size: int
) -> Float[Array, " n"]:
    """Every element times the scale of its block; the last block may be shorter."""
    n = len(values)
    padded = np.pad(values, (0, -n % block_size)) if n % block_size else values
    return (padded.reshape(-1, block_size) * scales[:, None]).reshape(-1)[:n]
