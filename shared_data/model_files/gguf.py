"""GGUF, the one-file format of llama.cpp: read and written by hand.

    magic GGUF, version, number of tensors, number of entries
    entries     key, type, value           the architecture, the tokenizer, the chat template
    tensors     name, sizes, type, offset  in the order of the file
    numbers     each tensor at a multiple of `general.alignment` (32 bytes unless the file names another)

All of it is little-endian. Sizes stand in the order of memory, the fastest first; `TensorInfo.shape` is PyTorch's order. What the entries and
names mean for a model stands in gguf_model.py and gguf_tokenizer.py, how numbers are stored in gguf_blocks.py. Theory: gguf.md.

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

from shared_data.errors import UserError, explain_os_error
from shared_data.files import atomic_write
from shared_data.model_files.gguf_blocks import BLOCK_TYPES, dequantize, quantize

MAGIC, VERSIONS = b"GGUF", (2, 3)  # 1 counted with 32 bits; 3 differs from 2 in allowing big-endian files
# The types of an entry by their number: how `struct` reads them.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32
_MOST_DIMENSIONS = 4
_TYPE_NAMES = {block.code: name for name, block in BLOCK_TYPES.items()}
# The types that are not read, for the message.
_OTHER_TYPES = dict(
    zip((6, 7, 9, 10, 11, 13, 15), ("Q5_0", "Q5_1", "Q8_1", "Q2_K", "Q3_K", "Q5_K", "Q8_K"), strict=True)
)
_OTHER_TYPES |= {16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S"}
_OTHER_TYPES |= {22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M"}
_OTHER_TYPES |= {34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0"}


class TensorInfo(NamedTuple):
    """How a tensor is stored: its type, its shape in PyTorch's order, its place in the file and its size, both in bytes."""

    type: str
    shape: tuple[int, ...]
    offset: int
    size: int


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
        if size < len(MAGIC):  # an empty file cannot be mapped
            raise _damaged(path, "it ends too early")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Header(path, data).read()


def _damaged(path: Path, cause: str) -> UserError:
    return UserError(f"{path} is no readable GGUF file: {cause}; copy it again")


class _Header:
    """Reads a header from its first byte to its last."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.position = path, data, 0

    def read(self) -> GgufFile:
        if (magic := self._take(4)) != MAGIC:
            raise _damaged(self.path, f"it begins with {magic!r}, not with {MAGIC!r}")
        version = self._number("I")
        if version and not version & 0xFFFF:
            raise UserError(
                f"{self.path} is big-endian, which is not supported; download or convert the little-endian file"
            )
        if version not in VERSIONS:
            raise UserError(
                f"{self.path} is a GGUF file of version {version}, and versions 2 and 3 are supported; convert the model again"
            )
        tensors, entries = self._count(24), self._count(13)  # the bytes that the smallest of each takes
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._string()
            if key in metadata:
                raise _damaged(self.path, f"it has two entries {key!r:.60}")
            metadata[key] = self._value(self._number("I"))
        parts = metadata.get("split.count", 1)
        if parts not in (0, 1):
            raise UserError(f"{self.path} is one of {parts} parts of a model; merge them into one file first")
        found = [self._tensor() for _ in range(tensors)]
        return GgufFile(
            self.path, metadata, self._places(found, metadata.get("general.alignment", _ALIGNMENT))
        )

    def _take(self, size: int) -> bytes:
        """The next bytes of the file."""
        if size > len(self.data) - self.position:
            raise _damaged(self.path, "it ends too early, or a length in it is wrong")
        self.position += size
        return self.data[self.position - size : self.position]

    def _number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self._take(struct.calcsize(f"<{kind}")))[0]

    def _count(self, smallest: int) -> int:
        """A number of things, each of which takes at least so many bytes."""
        count = self._number("Q")
        if count * smallest > len(self.data) - self.position:
            raise _damaged(self.path, f"it promises {count} entries, more than it has room for")
        return count

    def _string(self) -> str:
        text = self._take(self._number("Q"))
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise _damaged(self.path, f"the text {text[:30]!r} is not UTF-8") from error

    def _value(self, kind: int) -> Any:
        """The value of an entry: a number, a flag, a text, or a list of one of these."""
        if kind == _STRING:
            return self._string()
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind != _ARRAY:
            raise _damaged(self.path, f"an entry has the unknown type {kind}")
        kind = self._number("I")
        if kind == _STRING:
            return [self._string() for _ in range(self._count(8))]
        if kind not in _NUMBERS:
            raise _damaged(self.path, f"a list has the type {kind}, neither numbers nor texts")
        width = struct.calcsize(f"<{_NUMBERS[kind]}")
        return np.frombuffer(self._take(self._count(width) * width), f"<{_NUMBERS[kind]}").tolist()

    def _tensor(self) -> tuple[str, str, tuple[int, ...], int]:
        """Name, type, shape and offset of the next tensor."""
        name, dimensions = self._string(), self._number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise _damaged(self.path, f"tensor {name!r:.60} has {dimensions} dimensions")
        shape = tuple(reversed([self._number("Q") for _ in range(dimensions)]))
        code, offset = self._number("I"), self._number("Q")
        if code not in _TYPE_NAMES:
            raise UserError(
                f"{self.path}: tensor {name!r:.60} has the type {_OTHER_TYPES.get(code, code)}, which is not supported; use a file of "
                f"the types {', '.join(BLOCK_TYPES)}"
            )
        return name, _TYPE_NAMES[code], shape, offset

    def _places(
        self, found: list[tuple[str, str, tuple[int, ...], int]], alignment: Any
    ) -> dict[str, TensorInfo]:
        """Where each tensor lies, once it is known to lie within the file."""
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise _damaged(self.path, f"general.alignment is {alignment!r:.60}, not a power of two")
        start = _padded(self.position, alignment)
        tensors: dict[str, TensorInfo] = {}
        for name, type_name, shape, offset in found:
            block = BLOCK_TYPES[type_name]
            size = prod(shape) // block.weights * block.bytes
            if name in tensors:
                raise _damaged(self.path, f"it has two tensors {name!r:.60}")
            if not size or shape[-1] % block.weights:
                raise _damaged(
                    self.path, f"tensor {name!r:.60} of type {type_name} has the shape {list(shape)}"
                )
            if offset % alignment or start + offset + size > len(self.data):
                raise _damaged(self.path, f"tensor {name!r:.60} lies outside of the file or is not aligned")
            tensors[name] = TensorInfo(type_name, shape, start + offset, size)
        return tensors


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
            offset = _padded(offset + prod(shape) // block.weights * block.bytes, _ALIGNMENT)
        for type_name, _, numbers in tensors.values():
            _pad(file)
            file.write(quantize(numbers(), type_name))


def _padded(position: int, alignment: int) -> int:
    """The next multiple."""
    return -(-position // alignment) * alignment


def _pad(file: IO[bytes]) -> None:
    file.write(bytes(_padded(file.tell(), _ALIGNMENT) - file.tell()))


def _string_bytes(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _value_bytes(value: Any) -> bytes:
    """The type of an entry and its value."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string_bytes(value)
    if isinstance(value, list):
        kind = _STRING if isinstance(value[0], str) else 5 if isinstance(value[0], int) else 6
        head = struct.pack("<IIQ", _ARRAY, kind, len(value))
        if kind == _STRING:
            return head + b"".join(map(_string_bytes, value))
        return head + np.array(value, f"<{_NUMBERS[kind]}").tobytes()
    kind = {bool: 7, int: 4, float: 6}[type(value)]
    return struct.pack(f"<I{_NUMBERS[kind]}", kind, value)
