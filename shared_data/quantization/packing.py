"""Codes of 4 bits in integers of 32, in the order of GPTQ's checkpoints.

Eight codes make an int32, the first in the lowest bits. The weight [O, I] is stored transposed, `qweight` [I / 8, O]: eight inputs of one
output share an integer. `qzeros` [G, O / 8] packs the zero points of eight outputs. Files of the original format ("gptq") hold
each zero point less 1, and readers add it again; "gptq_v2" holds it as it is.

    uv run python -c "import numpy as np; from shared_data.quantization.packing import *; print(pack(np.arange(8)[None]))"
"""

import numpy as np
from jaxtyping import Int32, Integer, UInt8

CODES_PER_INTEGER = 8
_SHIFTS = np.arange(0, 32, 4, dtype=np.uint32)


def pack(codes: Integer[np.ndarray, "rows n"]) -> Int32[np.ndarray, "rows packed"]:
    """Eight neighbours of each row in one integer: Σ code_k · 16^k."""
    rows, n = codes.shape
    assert n % CODES_PER_INTEGER == 0, f"{n} codes do not fill whole integers"
    parts = codes.reshape(rows, n // CODES_PER_INTEGER, CODES_PER_INTEGER).astype(np.uint32)
    return np.bitwise_or.reduce(parts << _SHIFTS, axis=-1).view(np.int32)


def unpack(packed: Int32[np.ndarray, "rows packed"]) -> UInt8[np.ndarray, "rows n"]:
    """The codes again."""
    codes = packed.view(np.uint32)[..., None] >> _SHIFTS & np.uint32(15)
    return codes.astype(np.uint8).reshape(len(packed), -1)


def pack_weight(codes: Integer[np.ndarray, "O I"]) -> Int32[np.ndarray, "packed O"]:
    """`qweight`: eight inputs of an output in one integer."""
    return np.ascontiguousarray(pack(codes).T)


def unpack_weight(qweight: Int32[np.ndarray, "packed O"]) -> UInt8[np.ndarray, "O I"]:
    """The codes of a weight again."""
    return unpack(np.ascontiguousarray(qweight.T))


def pack_zeros(zeros: Integer[np.ndarray, "O G"], shifted: bool = True) -> Int32[np.ndarray, "G packed"]:
    """`qzeros`: the zero points, 0 to 15, of eight outputs in one integer, less 1 where `shifted`; 0 less 1 is 15."""
    return pack((np.ascontiguousarray(zeros.T).astype(np.int64) - int(shifted)) % 16)


def unpack_zeros(qzeros: Int32[np.ndarray, "G packed"], shifted: bool = True) -> UInt8[np.ndarray, "O G"]:
    """The zero points again."""
    return np.ascontiguousarray(((unpack(qzeros) + np.uint8(shifted)) % 16).T)
