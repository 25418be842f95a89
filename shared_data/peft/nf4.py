"""The constants of NF4: its 16 levels, and the 256 levels that the scales themselves are stored in.

NF4 is Dettmers et al. 2023 (appendix E; v2_handwritten/models/peft/qlora.md derives the levels), the 8-bit type Dettmers 2016.

    uv run python -c "from shared_data.peft.nf4 import dynamic_codes; print(dynamic_codes()[:4])"
"""

import functools

import numpy as np
from jaxtyping import Float

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
SCALES_PER_BLOCK = 256  # of the second quantization
SMALLEST_SCALE = 1e-38  # a block of zeros is divided by this


@functools.cache
def levels_of_bytes() -> Float[np.ndarray, "256 2"]:
    """The two levels that each byte stands for, the high bits' first."""
    levels, byte = np.array(NF4_CODES, np.float32), np.arange(256)
    return np.stack([levels[byte >> 4], levels[byte & 15]], axis=-1)


@functools.cache
def dynamic_codes() -> Float[np.ndarray, "256"]:
    """The 8-bit levels of the scales: sign, decimal exponent, and fraction share the bits.

    The smaller a number's exponent, the fewer bits are left for its fraction: 64 levels each side from 0.1 to 1, 32 from
    0.01 to 0.1, and so on; 0, and 1 itself.
    """
    levels = [0.0, 1.0]
    for exponent in range(7):
        edges = _tenth_to_one(2**exponent + 1)
        magnitudes = np.float32(10.0 ** (exponent - 6)) * ((edges[:-1] + edges[1:]) / 2)
        levels += [*magnitudes.tolist(), *(-magnitudes).tolist()]
    return np.array(sorted(levels), np.float32)


def _tenth_to_one(count: int) -> Float[np.ndarray, " {count}"]:
    """Equally spaced numbers as `torch.linspace`, and so bitsandbytes, makes them: a float32 step, counted from the nearer end."""
    start, end = np.float32(0.1), np.float32(1)
    step = float((end - start) / np.float32(count - 1))
    index = np.arange(count)
    rising, falling = float(start) + step * index, float(end) - step * (count - 1 - index)
    return np.where(index < count // 2, rising, falling).astype(np.float32)
