"""QLoRA: the frozen base in 4 bits, adapters in full precision on top (Dettmers et al. 2023).

NF4 (section 3, "4-bit NormalFloat"): blocks of 64 weights share a scale, their largest magnitude; each weight is one of 16
levels, placed where a normal distribution has its quantiles. Double quantization: the scales, less their mean, are stored
in 8 bits. A layer decodes its weight for each product, and again in the backward pass, so that only codes stay in memory.

Level 1: bitsandbytes. Level 2: the same in torch. Theory: v2_handwritten/finetune/peft/qlora.md.

    python -c "import numpy as np; from v3_numpy_deep.finetune.peft.qlora import *; x = np.random.randn(2, 64); print(dequantize_nf4(quantize_nf4(x)) - x)"
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

from shared_data.errors import UserError
from v3_numpy_deep.autograd import Array, Module, Tensor, record
from v3_numpy_deep.finetune.peft.target_modules import select_layers
from v3_numpy_deep.models.blocks.linear import Conv1D
from v3_numpy_deep.pretrain.components.muon import is_hidden

# The levels of NF4 (Dettmers et al. 2023, appendix E); qlora.md derives them.
NF4_CODES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_SCALES_PER_BLOCK = 256  # of the second quantization
_SMALLEST_SCALE = 1e-38  # a block of zeros is divided by this


@dataclass(frozen=True)
class QuantizationConfig:
    """How the base is stored; the same fields at all levels."""

    block_size: int = 64  # weights that share a scale
    double_quantization: bool = True  # store the scales themselves in 8 bits
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"

    def __post_init__(self) -> None:
        if self.block_size not in (32, 64, 128, 256, 512, 1024, 2048, 4096):
            raise UserError(
                f"blocks of {self.block_size} weights are not among 32, 64, 128, … 4096; choose one of these"
            )


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
    values = _levels_of_bytes().take(quantized.codes, axis=0).reshape(-1)
    values = values[: math.prod(quantized.shape)]
    return _scale_blocks(values, _decoded_scales(quantized), quantized.block_size).reshape(quantized.shape)


@functools.cache
def dynamic_codes() -> Float[Array, "256"]:
    """The 8-bit levels of the scales: sign, decimal exponent, and fraction share the bits (Dettmers 2016).

    The smaller a number's exponent, the fewer bits are left for its fraction: 64 levels each side from 0.1 to 1, 32 from
    0.01 to 0.1, and so on; 0, and 1 itself.
    """
    levels = [0.0, 1.0]
    for exponent in range(7):
        edges = _tenth_to_one(2**exponent + 1)
        magnitudes = np.float32(10.0 ** (exponent - 6)) * ((edges[:-1] + edges[1:]) / 2)
        levels += [*magnitudes.tolist(), *(-magnitudes).tolist()]
    return np.array(sorted(levels), np.float32)


class QuantizedLinear(Module):
    """Stands in place of a `Linear` or `Conv1D`, with its weight in 4 bits, always as [out, in]. It does not train.

    Products are computed in the type that the weight had.
    """

    replaces_linear = True

    def __init__(self, base: Module, block_size: int = 64, double_quantization: bool = True) -> None:
        super().__init__()
        weight = base.weight.data
        self._quantized = quantize_nf4(
            weight.T if isinstance(base, Conv1D) else weight, block_size, double_quantization
        )
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
    places = select_layers(model, config.target_modules)
    for place in places:
        if getattr(place.layer, "replaces_linear", False):
            raise UserError(
                f"{place.path} is quantized or carries adapters already; quantize the plain model first"
            )
    for place in places:
        place.replace(QuantizedLinear(place.layer, config.block_size, config.double_quantization))


def memory_bytes(model: Module, optimizer: Literal["adamw", "muon"] = "adamw") -> dict[str, int]:
    """What training keeps besides activations: weights, gradients, moments (float32), and their sum.

    AdamW has two moments of every parameter, Muon one of each hidden matrix.
    """
    codes = [
        array
        for module in model.modules()
        if isinstance(module, QuantizedLinear)
        for array in _arrays(module)
    ]
    weights = sum(array.nbytes for array in (*(parameter.data for parameter in model.parameters()), *codes))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = sum(parameter.data.nbytes for parameter in trainable)
    moments = sum(
        4 * parameter.size * (1 if optimizer == "muon" and is_hidden(name, parameter) else 2)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    )
    return {
        "weights": weights,
        "gradients": gradients,
        "moments": moments,
        "total": weights + gradients + moments,
    }


def _arrays(layer: QuantizedLinear) -> list[Any]:
    """The arrays that make up a quantized weight."""
    quantized = layer.quantized
    stored = (quantized.codes, quantized.scales, quantized.nested_scales, quantized.offset)
    return [array for array in stored if array is not None]


def _normalize(flat: Float[Array, " n"], block_size: int) -> tuple[Array, Array]:
    """The largest magnitude of each block, and all elements divided by that of theirs; the last block may be shorter."""
    n = len(flat)
    blocks = np.pad(flat, (0, -n % block_size)).reshape(-1, block_size)
    scales = np.abs(blocks).max(axis=1)
    # bitsandbytes multiplies by the inverse; dividing would round a few elements to another level.
    inverses = np.float32(1) / np.maximum(scales, np.float32(_SMALLEST_SCALE))[:, None]
    return scales, np.clip(blocks * inverses, -1, 1).reshape(-1)[:n]


def _encode_scales(quantized: QuantizedTensor) -> None:
    """Double quantization (section 3): the scales less their mean, in blocks of 256, as codes of 8 bits."""
    scales = quantized.scales
    quantized.offset = np.float32(scales.mean(dtype=np.float64))
    quantized.nested_scales, normalized = _normalize(scales - quantized.offset, _SCALES_PER_BLOCK)
    # On a CPU, bitsandbytes looks codes up in a table of 65,536 entries: the values are rounded to its grid first.
    entry = np.floor((normalized + 1) * np.float32(0.5) * 65535 + np.float32(0.5))
    codes = _nearest(2 * entry / 65535 - 1, dynamic_codes())
    is_zero = _scale_blocks(np.ones_like(normalized), quantized.nested_scales, _SCALES_PER_BLOCK) == 0
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
    return _scale_blocks(values, quantized.nested_scales, _SCALES_PER_BLOCK) + quantized.offset


def _scale_blocks(
    values: Float[Array, " n"], scales: Float[Array, " blocks"], block_size: int
) -> Float[Array, " n"]:
    """Every element times the scale of its block; the last block may be shorter."""
    n = len(values)
    padded = np.pad(values, (0, -n % block_size)) if n % block_size else values
    return (padded.reshape(-1, block_size) * scales[:, None]).reshape(-1)[:n]


@functools.cache
def _levels_of_bytes() -> Float[Array, "256 2"]:
    """The two levels that each byte stands for."""
    levels, byte = np.array(NF4_CODES, np.float32), np.arange(256)
    return np.stack([levels[byte >> 4], levels[byte & 15]], axis=-1)


def _tenth_to_one(count: int) -> Float[Array, " {count}"]:
    """Equally spaced numbers as `torch.linspace` makes them: a float32 step, counted from the nearer end, rounded once."""
    start, end = np.float32(0.1), np.float32(1)
    step = float((end - start) / np.float32(count - 1))
    index = np.arange(count)
    rising, falling = float(start) + step * index, float(end) - step * (count - 1 - index)
    return np.where(index < count // 2, rising, falling).astype(np.float32)
