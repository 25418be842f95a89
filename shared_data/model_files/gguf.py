"""GGUF, the one-file format of llama.cpp: read and written by hand.

    magic GGUF, version, number of tensors, number of entries
    entries     key, type, value           the architecture, the tokenizer, the chat template
    tensors     name, sizes, type, offset  in the order of the file
    numbers     each tensor at a multiple of `general.alignment` (32 bytes unless the file names another)

All of it is little-endian. Sizes stand in the order of memory, the fastest first; `TensorInfo.shape` is PyTorch's order. The header is read in
gguf_header.py; what entries and names mean for a model stands in gguf_model.py and gguf_tokenizer.py, how numbers are stored in
gguf_blocks.py. Theory: gguf.md.

Level 1: `gguf_file=` of transformers' `from_pretrained`.

    uv run python -c "from shared_data.model_files.gguf import *; print(read_gguf('model.gguf').metadata['general.architecture'])"
"""

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from shared_data.errors import explain_os_error
from shared_data.files import atomic_write
from shared_data.model_files.gguf_blocks import BLOCK_TYPES, dequantize, quantize
from shared_data.model_files.gguf_header import (
    ALIGNMENT,
    ARRAY,
    MAGIC,
    NUMBERS,
    STRING,
    VERSIONS,
    Header,
    TensorInfo,
    damaged,
    padded,
)


class NewTensor(NamedTuple):
    """A tensor to be written; `numbers` is called when its turn comes, so that one tensor at a time is in memory."""

    type: str
    shape: tuple[int, ...]
    numbers: Callable[[], Float32[np.ndarray, "..."]]


@dataclass(frozen=True)
class GgufFile:
    """The header of a file. It is kept for the next caller, so leave its dictionaries as they are."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    def array(self, name: str) -> Float32[np.ndarray, "..."]:
        """The numbers of a tensor, whatever they are stored as, in memory of their own."""
        block_type, shape, offset, size = self.tensors[name]
        data = np.memmap(self.path, np.uint8, "r", offset, (size,))
        return dequantize(data, block_type).reshape(shape)


def is_gguf(path: Path | str) -> bool:
    """Whether a path names a GGUF file, by its ending."""
    return Path(path).suffix.lower() == ".gguf" and not Path(path).is_dir()


def read_gguf(path: Path | str) -> GgufFile:
    """The header of a file; raises `UserError` where it is missing or damaged, or has a type that cannot be read.

    Nothing is allocated for what a number in the file promises before the file is known to be as long.
    """
    path = Path(path)
    try:
        state = path.stat()
        return _read(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise explain_os_error(error, path) or error from error


@lru_cache(maxsize=2)  # each tensor of a model is looked up in the header
def _read(path: Path, size: int, modified: int) -> GgufFile:
    with open(path, "rb") as file:
        if not size:  # an empty file cannot be mapped
            raise damaged(path, "it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return GgufFile(path, *Header(path, data).read())


def write_gguf(path: Path | str, metadata: Mapping[str, Any], tensors: Mapping[str, NewTensor]) -> None:
    """Write a file, whole or not at all. Integers become uint32 (in lists int32), floats float32."""
    with atomic_write(path) as file:
        file.write(MAGIC + struct.pack("<IQQ", VERSIONS[-1], len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_string_bytes(key) + _value_bytes(value))
        offset = 0
        for name, (type_name, shape, _) in tensors.items():
            block = BLOCK_TYPES[type_name]
            file.write(_string_bytes(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape)))
            file.write(struct.pack("<IQ", block.code, offset))
            offset = padded(offset + prod(shape) // block.weights * block.bytes, ALIGNMENT)
        for type_name, _, numbers in tensors.values():
            _pad(file)
            file.write(quantize(numbers(), type_name))


def _pad(file: IO[bytes]) -> None:
    file.write(bytes(padded(file.tell(), ALIGNMENT) - file.tell()))


def _string_bytes(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _value_bytes(value: Any) -> bytes:
    """The type of an entry and its value."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string_bytes(value)
    if isinstance(value, list):
        kind = STRING if isinstance(value[0], str) else 5 if isinstance(value[0], int) else 6
        head = struct.pack("<IIQ", ARRAY, kind, len(value))
        if kind == STRING:
            return head + b"".join(map(_string_bytes, value))
        return head + np.array(value, f"<{NUMBERS[kind]}").tobytes()
    kind = {bool: 7, int: 4, float: 6}[type(value)]
    return struct.pack(f"<I{NUMBERS[kind]}", kind, value)
