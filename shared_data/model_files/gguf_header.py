"""The header of a GGUF file, checked as it is read: what it promises must lie within the file.

    magic GGUF, version, number of tensors, number of entries
    entries     key, type, value           a number, a flag, a text, or a list of one of these
    tensors     name, sizes, type, offset

A file from the hub may be cut off, or made to do harm: a number that counts or measures is compared with what is left of the file before
anything is allocated for it. Public: `read_gguf` in gguf.py.
"""

import mmap
import struct
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shared_data.errors import UserError
from shared_data.model_files.gguf_blocks import BLOCK_TYPES

MAGIC, VERSIONS = b"GGUF", (2, 3)  # 1 counted with 32 bits; 3 differs from 2 in allowing big-endian files
# The types of an entry by their number: how `struct` reads them.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ALIGNMENT = 32
_MOST_DIMENSIONS = 4
_LONGEST_NAME = 256  # characters; llama.cpp allows 63 bytes for tensors
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


def damaged(path: Path, cause: str) -> UserError:
    """The one line about a file that is not what it should be."""
    return UserError(f"{path} is no readable GGUF file: {cause}; copy it again")


class Header:
    """Reads a header from its first byte to its last."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.position = path, data, 0

    def read(self) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        """The entries and the tensors. Raises `UserError` for a damaged file, and for a tensor of a type that is not read."""
        if (magic := self._take(4)) != MAGIC:
            raise damaged(self.path, f"it begins with {magic!r}, not with {MAGIC!r}")
        version = self._number("I")
        if version and not version & 0xFFFF:
            raise UserError(
                f"{self.path} is big-endian, which is not supported; download or convert the little-endian file"
            )
        if version not in VERSIONS:
            raise UserError(
                f"{self.path} is a GGUF file of version {version}, and versions 2 and 3 are supported; convert the model again"
            )
        tensors, entries = self._count(32), self._count(13)  # the bytes that the smallest of each takes
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._name()
            if key in metadata:
                raise damaged(self.path, f"it has two entries {key!r:.60}")
            metadata[key] = self._value(self._number("I"))
        parts = metadata.get("split.count", 1)
        if parts not in (0, 1):
            raise UserError(f"{self.path} is one of {parts} parts of a model; merge them into one file first")
        found = [self._tensor() for _ in range(tensors)]
        return metadata, self._places(found, metadata.get("general.alignment", ALIGNMENT))

    def _take(self, size: int) -> bytes:
        """The next bytes of the file."""
        if size > len(self.data) - self.position:
            raise damaged(self.path, "it ends too early, or a length in it is wrong")
        self.position += size
        return self.data[self.position - size : self.position]

    def _number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self._take(struct.calcsize(f"<{kind}")))[0]

    def _count(self, smallest: int) -> int:
        """A number of things, each of which takes at least so many bytes."""
        count = self._number("Q")
        if count * smallest > len(self.data) - self.position:
            raise damaged(self.path, f"it promises {count} entries, more than it has room for")
        return count

    def _string(self) -> str:
        text = self._take(self._number("Q"))
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise damaged(self.path, f"the text {text[:30]!r} is not UTF-8") from error

    def _name(self) -> str:
        """The name of an entry or a tensor, which stands in messages."""
        name = self._string()
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise damaged(self.path, f"a name in it is {name[:30]!r}")
        return name

    def _value(self, kind: int) -> Any:
        """The value of an entry: a number, a flag, a text, or a list of one of these."""
        if kind == STRING:
            return self._string()
        if kind in NUMBERS:
            return self._number(NUMBERS[kind])
        if kind != ARRAY:
            raise damaged(self.path, f"an entry has the unknown type {kind}")
        kind = self._number("I")
        if kind == STRING:
            return [self._string() for _ in range(self._count(8))]
        if kind not in NUMBERS:
            raise damaged(self.path, f"a list has the type {kind}, neither numbers nor texts")
        width = struct.calcsize(f"<{NUMBERS[kind]}")
        return np.frombuffer(self._take(self._count(width) * width), f"<{NUMBERS[kind]}").tolist()

    def _tensor(self) -> tuple[str, str, tuple[int, ...], int]:
        """Name, type, shape and offset of the next tensor."""
        name, dimensions = self._name(), self._number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise damaged(self.path, f"tensor {name!r:.60} has {dimensions} dimensions")
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
            raise damaged(self.path, f"general.alignment is {alignment!r:.60}, not a power of two")
        start = padded(self.position, alignment)
        tensors: dict[str, TensorInfo] = {}
        for name, type_name, shape, offset in found:
            block = BLOCK_TYPES[type_name]
            size = prod(shape) // block.weights * block.bytes
            if name in tensors:
                raise damaged(self.path, f"it has two tensors {name!r:.60}")
            if not size or shape[-1] % block.weights:
                raise damaged(
                    self.path, f"tensor {name!r:.60} of type {type_name} has the shape {list(shape)}"
                )
            if offset % alignment or start + offset + size > len(self.data):
                raise damaged(self.path, f"tensor {name!r:.60} lies outside of the file or is not aligned")
            tensors[name] = TensorInfo(type_name, shape, start + offset, size)
        return tensors


def padded(position: int, alignment: int) -> int:
    """The next multiple."""
    return -(-position // alignment) * alignment
