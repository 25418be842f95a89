"""What bitsandbytes stores beside an NF4 weight: a JSON text, as a tensor of bytes, that says how to decode it.

uv run python -c "from shared_data.quantization.nf4_state import *; print(bytes(write_state((8, 64), 'float32')))"
"""

import json
from typing import Any

import numpy as np
from jaxtyping import UInt8

from shared_data.errors import UserError
from shared_data.files import parse_json
from shared_data.foreign_json import ForeignJson
from shared_data.quantization.config import BLOCK_SIZE


class _State(ForeignJson):
    quant_type: str
    blocksize: int
    shape: list[int]
    nested_blocksize: int | None = None
    nested_offset: float | None = None


def write_state(
    shape: tuple[int, ...], dtype: str, offset: float | None = None
) -> UInt8[np.ndarray, " length"]:
    """The text for a weight [O, I] of this type. `offset`: the mean of the scales, where these are quantized too."""
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": BLOCK_SIZE,
        "dtype": dtype,
        "shape": list(shape),
    }
    if offset is not None:
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
    return np.frombuffer(json.dumps(state).encode(), np.uint8).copy()


def read_state(
    text: UInt8[np.ndarray, " length"], shape: tuple[int, ...], path: str, nested: bool
) -> float | None:
    """The mean of the scales, None where they are not `nested`. Raises `UserError` for a damaged text or another block size or shape."""
    expected: dict[str, Any] = {"quant_type": "nf4", "blocksize": BLOCK_SIZE, "shape": list(shape)}
    if nested:
        expected |= {"nested_blocksize": 256}
    try:
        state = parse_json(text.tobytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its quant_state is damaged ({error!s:.60}); copy the file again") from error
    found = _State.read(state, f"{path}: its quant_state is damaged", "copy the file again")
    for name, value in expected.items():
        if getattr(found, name) != value:
            raise UserError(
                f"{path}: its quant_state has {name} = {getattr(found, name)!r:.40}, not {value}; use the config.json that belongs to these weights"
            )
    if nested and found.nested_offset is None:
        raise UserError(f"{path}: its quant_state has no nested_offset; copy the file again")
    return found.nested_offset if nested else None
