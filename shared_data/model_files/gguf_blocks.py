"""The number formats of GGUF: blocks of small integers with a scale, to float32 and back.

A quantized tensor is a row of blocks. A block of 32 weights (256 in the "K" formats) has the integers $q_i$ and one or two scales; a weight
is read as (ggml-quants.c of llama.cpp)

    Q4_0    d (q - 8)                  q of 4 bits; d in float16                             4.5 bits a weight
    Q4_1    d q + m                    q of 4 bits; d, m in float16                          5.0
    Q8_0    d q                        q of 8 bits, with a sign                              8.5
    Q4_K    d s_j q - e m_j            q of 4 bits; s_j, m_j of 6 bits for each 32 weights   4.5
    Q6_K    d s_j (q - 32)             q of 6 bits; s_j of 8 bits for each 16 weights        6.5625

F32, F16 and BF16 are blocks of one weight. The theory page is gguf.md.

    uv run python -c "from shared_data.model_files.gguf_blocks import *; import numpy as np; print(dequantize(quantize(np.arange(32.0), 'Q8_0'), 'Q8_0'))"
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from shared_data.errors import UserError

Blocks = UInt8[np.ndarray, "N bytes"]
Weights = Float32[np.ndarray, "N weights"]


class BlockType(NamedTuple):
    """A format: its number in a file, how many weights a block has, how many bytes it takes, and how it is read."""

    code: int
    weights: int
    bytes: int
    read: Callable[[Blocks], Weights]


def _half(blocks: Blocks, first: int) -> Float32[np.ndarray, "N 1"]:
    """The float16 that begins at this byte of each block."""
    return np.ascontiguousarray(blocks[:, first : first + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Blocks, run: int) -> UInt8[np.ndarray, "N weights"]:
    """Integers of 4 bits: of each run of bytes first all low halves, then all high ones."""
    runs = packed.reshape(len(packed), -1, 1, run)
    return ((runs >> np.array([[0], [4]], np.uint8)) & 15).reshape(len(packed), -1)


def _read_f32(blocks: Blocks) -> Weights:
    return np.ascontiguousarray(blocks).view("<f4").astype(np.float32)


def _read_f16(blocks: Blocks) -> Weights:
    return _half(blocks, 0)


def _read_bf16(blocks: Blocks) -> Weights:
    """The upper half of a float32."""
    upper = np.ascontiguousarray(blocks).view("<u2").astype(np.uint32)
    return (upper << 16).view(np.float32)


def _read_q4_0(blocks: Blocks) -> Weights:
    """d (q - 8): d, then 16 bytes with the weights i and i + 16."""
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:], 16).astype(np.float32) - 8)


def _read_q4_1(blocks: Blocks) -> Weights:
    """d q + m: d, m, then 16 bytes with the weights i and i + 16."""
    return _half(blocks, 0) * _nibbles(blocks[:, 4:], 16).astype(np.float32) + _half(blocks, 2)


def _read_q8_0(blocks: Blocks) -> Weights:
    """d q: d, then 32 bytes."""
    return _half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32)


def _read_q4_k(blocks: Blocks) -> Weights:
    """d s_j q - e m_j: d, e, 12 bytes with the eight s_j and m_j of 6 bits, then 128 bytes of 4-bit integers.

    The first four bytes hold s_0 to s_3 and the next four m_0 to m_3, in their lower 6 bits. The last four hold the lower 4 bits of s_4 to s_7
    and, above them, of m_4 to m_7; the upper 2 bits of those are the upper 2 of the first eight bytes.
    """
    first, second, last = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 63, (last & 15) | (first >> 6 << 4)], axis=1)  # s_j, [N, 8]
    offsets = np.concatenate([second & 63, (last >> 4) | (second >> 6 << 4)], axis=1)  # m_j
    scale = (_half(blocks, 0) * scales.astype(np.float32))[:, :, None]
    offset = (_half(blocks, 2) * offsets.astype(np.float32))[:, :, None]
    q = _nibbles(blocks[:, 16:], 32).reshape(-1, 8, 32).astype(np.float32)
    return (scale * q - offset).reshape(-1, 256)


def _read_q6_k(blocks: Blocks) -> Weights:
    """d s_j (q - 32): 128 bytes with the lower 4 bits of the integers, 64 with the upper 2, the sixteen s_j, d."""
    upper = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8)
    q = _nibbles(blocks[:, :128], 64) | ((upper & 3) << 4).reshape(-1, 256)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    scale = (_half(blocks, 208) * scales)[:, :, None]
    return (scale * (q.reshape(-1, 16, 16).astype(np.float32) - 32)).reshape(-1, 256)


BLOCK_TYPES: dict[str, BlockType] = {
    "F32": BlockType(0, 1, 4, _read_f32),
    "F16": BlockType(1, 1, 2, _read_f16),
    "BF16": BlockType(30, 1, 2, _read_bf16),
    "Q4_0": BlockType(2, 32, 18, _read_q4_0),
    "Q4_1": BlockType(3, 32, 20, _read_q4_1),
    "Q8_0": BlockType(8, 32, 34, _read_q8_0),
    "Q4_K": BlockType(12, 256, 144, _read_q4_k),
    "Q6_K": BlockType(14, 256, 210, _read_q6_k),
}
_BLOCKS_AT_ONCE = 1 << 16  # so that what is computed on the way stays small beside the result


def dequantize(data: UInt8[np.ndarray, " bytes"], block_type: str) -> Float32[np.ndarray, " weights"]:
    """The weights of a row of blocks, in memory of their own."""
    _, size, width, read = BLOCK_TYPES[block_type]
    blocks = data.reshape(-1, width)
    weights = np.empty((len(blocks), size), np.float32)
    for start in range(0, len(blocks), _BLOCKS_AT_ONCE):
        weights[start : start + _BLOCKS_AT_ONCE] = read(blocks[start : start + _BLOCKS_AT_ONCE])
    return weights.reshape(-1)


def quantize(weights: Float32[np.ndarray, "..."], block_type: str) -> UInt8[np.ndarray, " bytes"]:
    """The blocks of an array as F32, F16 or Q8_0; the last axis must be a multiple of the block.

    Q8_0: d = max |w| / 127, and q = w / d rounded to the nearest integer, halves away from zero. An error is at most d / 2, and some more
    because d is rounded to float16. Raises `UserError` for a weight that is no finite number of this format.
    """
    w = np.ascontiguousarray(weights, np.float32).reshape(-1)
    if block_type == "F32":
        return w.view(np.uint8)
    with np.errstate(over="ignore", invalid="ignore"):
        if block_type == "Q8_0":
            return _write_q8_0(w.reshape(-1, 32))
        assert block_type == "F16", f"{block_type} is only read"
        half = w.astype(np.float16)
    _check_finite(half, block_type)
    return half.view(np.uint8)


def _write_q8_0(w: Weights) -> UInt8[np.ndarray, " bytes"]:
    d = np.abs(w).max(axis=1, keepdims=True) / np.float32(127)
    inverse = np.divide(1, d, out=np.zeros_like(d), where=d != 0)
    size = np.abs(w * inverse)
    whole = np.floor(size)
    q = np.sign(w) * (whole + np.floor(2 * (size - whole)))  # np.round rounds halves to even
    stored = d.astype(np.float16)
    _check_finite(stored, "Q8_0")
    return np.concatenate([stored.view(np.uint8), q.astype(np.int8).view(np.uint8)], axis=1).reshape(-1)


def _check_finite(stored: np.ndarray, block_type: str) -> None:
    if not np.isfinite(stored).all():
        raise UserError(
            f"a weight is not finite, or too large for {block_type}; export the type f32, or train again"
        )
