"""The memory of a deduplicator: which document has this text, which have a band of this signature in common?

A Python dictionary a band would be three lines and two kilobytes a document. Here the tables are flat arrays, a hash table
with chains, and what is rarely read (the signature, to check a candidate, and the id) lies in a temporary file:

    heads[band][slot]       the newest document with a key in this slot, plus one (0: none)
    older[band][document]   the next older one in the same slot, plus one
    keys[band][document]    the 32-bit key, from which the slot follows

That is 8 (bands + 1) + 8 bytes of memory a kept document. The text itself is one more "band", whose key is a hash of it.
Level 1: datasketch's dictionaries. Level 3: the same tables as NumPy arrays, all bands in one step.
"""

import tempfile
import zlib
from array import array

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

_SLOTS = 1 << 17  # of each band; chains grow longer than one beyond that many documents


class SignatureIndex:
    """Documents by the hash of their text and by the bands of their signature."""

    def __init__(self, bands: int, rows: int, permutations: int) -> None:
        self.bands, self.rows, self.permutations = bands, rows, permutations
        self._heads = [array("I", bytes(4 * _SLOTS)) for _ in range(bands + 1)]
        self._older = [array("I") for _ in range(bands + 1)]
        self._keys = [array("I") for _ in range(bands + 1)]
        self._offsets = array("Q", [0])  # where each record begins in the file, and where the next one will
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the index

    def __len__(self) -> int:
        """Documents remembered."""
        return len(self._offsets) - 1

    def memory_bytes(self) -> int:
        """Bytes of the tables in memory."""
        tables = [*self._heads, *self._older, *self._keys, self._offsets]
        return sum(len(table) * table.itemsize for table in tables)

    def find_exact(self, digest: bytes) -> str | None:
        """The id of the document with this hash of its text."""
        for number in self._chain(self.bands, int.from_bytes(digest[:4], "little")):
            known, _, document_id = self._read(number)
            if known == digest:
                return document_id
        return None

    def find_near(self, signature: Int[Tensor, "permutations"], threshold: float) -> tuple[str, float] | None:
        """Id and estimated similarity of the most similar document that shares a band, if it reaches the threshold."""
        candidates: set[int] = set()
        for band, key in enumerate(self._band_keys(signature)):
            candidates.update(self._chain(band, key))
        best: tuple[str, float] | None = None
        for number in sorted(candidates):  # of equally similar ones, the earliest
            _, known, document_id = self._read(number)
            similarity = float((known == signature).double().mean())
            if similarity >= threshold and (best is None or similarity > best[1]):
                best = (document_id, similarity)
        return best

    def add(self, document_id: str, digest: bytes, signature: Int[Tensor, "permutations"] | None) -> None:
        """Remember a document; without a signature only its text."""
        number = len(self)
        keys = self._band_keys(signature) if signature is not None else [None] * self.bands
        for band, key in enumerate([*keys, int.from_bytes(digest[:4], "little")]):
            self._keys[band].append(key or 0)
            if key is None:
                self._older[band].append(0)
                continue
            slot = key % _SLOTS
            self._older[band].append(self._heads[band][slot])
            self._heads[band][slot] = number + 1
        packed = _pack(signature) if signature is not None else bytes(4 * self.permutations)
        record = digest + packed + document_id.encode()
        self._file.seek(self._offsets[number])
        self._file.write(record)
        self._offsets.append(self._offsets[number] + len(record))

    def _band_keys(self, signature: Int[Tensor, "permutations"]) -> list[int]:
        """A 32-bit hash of each band; if two bands collide, the estimate over the whole signature tells them apart."""
        packed, size = _pack(signature), 4 * self.rows
        return [zlib.crc32(packed[band * size : (band + 1) * size]) for band in range(self.bands)]

    def _chain(self, band: int, key: int) -> list[int]:
        """Documents with this key in this band, the newest first."""
        older, keys = self._older[band], self._keys[band]
        found = []
        link = self._heads[band][key % _SLOTS]
        while link:
            if keys[link - 1] == key:
                found.append(link - 1)
            link = older[link - 1]
        return found

    def _read(self, number: int) -> tuple[bytes, Int[Tensor, "permutations"], str]:
        """Hash of the text, signature and id of a document."""
        start, end = self._offsets[number], self._offsets[number + 1]
        self._file.seek(start)
        record = self._file.read(end - start)
        middle = 20 + 4 * self.permutations
        signature = torch.frombuffer(bytearray(record[20:middle]), dtype=torch.int32).long() & 0xFFFFFFFF
        return record[:20], signature, record[middle:].decode()


def _pack(signature: Int[Tensor, "permutations"]) -> bytes:
    """Four bytes a number."""
    return signature.numpy().astype(np.uint32).tobytes()
