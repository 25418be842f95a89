"""The memory of a deduplicator: which document has this text, which have a band of this signature in common?

A Python dictionary a band would be three lines and two kilobytes a document. Here the tables are flat arrays, a hash table
with chains; what is rarely read (the signature, to check a candidate, and the id) lies in a file (`DocumentStore`):

    heads[band][slot]       the newest document with a key in this slot, plus one (0: none)
    older[band][document]   the next older one in the same slot, plus one
    keys[band][document]    the 32-bit key, from which the slot follows

That is 8 (bands + 1) + 8 bytes of memory a kept document. The text itself is one more "band", whose key is a hash of it.
Level 1: datasketch's dictionaries. Level 3: the same tables as NumPy arrays, all bands in one step.
"""

import zlib
from array import array

import numpy as np
from jaxtyping import Int
from torch import Tensor

from shared_data.cleaning.document_store import DocumentStore

_SLOTS = 1 << 17  # of each band; chains grow longer than one beyond that many documents


class SignatureIndex:
    """Documents by the hash of their text and by the bands of their signature."""

    def __init__(self, bands: int, rows: int, permutations: int) -> None:
        self.bands, self.rows = bands, rows
        self._heads = [array("I", bytes(4 * _SLOTS)) for _ in range(bands + 1)]
        self._older = [array("I") for _ in range(bands + 1)]
        self._keys = [array("I") for _ in range(bands + 1)]
        self._store = DocumentStore(permutations)

    def __len__(self) -> int:
        """Documents remembered."""
        return len(self._store)

    def memory_bytes(self) -> int:
        """Bytes of the tables in memory."""
        tables = [*self._heads, *self._older, *self._keys]
        return sum(len(table) * table.itemsize for table in tables) + self._store.memory_bytes()

    def find_exact(self, digest: bytes) -> str | None:
        """The id of the document with this hash of its text."""
        return self._store.find_exact(self._chain(self.bands, _text_key(digest)), digest)

    def find_near(self, signature: Int[Tensor, "permutations"], threshold: float) -> tuple[str, float] | None:
        """Id and estimated similarity of the most similar document that shares a band, if it reaches the threshold."""
        candidates: set[int] = set()
        for band, key in enumerate(self._band_keys(signature)):
            candidates.update(self._chain(band, key))
        return self._store.find_near(candidates, _as_uint32(signature), threshold)

    def add(self, document_id: str, digest: bytes, signature: Int[Tensor, "permutations"] | None) -> None:
        """Remember a document; without a signature only its text."""
        link = len(self) + 1
        keys = self._band_keys(signature) if signature is not None else [None] * self.bands
        for band, key in enumerate([*keys, _text_key(digest)]):
            self._keys[band].append(key or 0)
            if key is None:
                self._older[band].append(0)
                continue
            slot = key % _SLOTS
            self._older[band].append(self._heads[band][slot])
            self._heads[band][slot] = link
        self._store.append(document_id, digest, None if signature is None else _as_uint32(signature))

    def _band_keys(self, signature: Int[Tensor, "permutations"]) -> list[int]:
        """A 32-bit hash of each band; if two bands collide, the estimate over the whole signature tells them apart."""
        packed, size = _as_uint32(signature).tobytes(), 4 * self.rows
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


def _text_key(digest: bytes) -> int:
    """The key of a text: the first four bytes of its hash."""
    return int.from_bytes(digest[:4], "little")


def _as_uint32(signature: Int[Tensor, "permutations"]) -> np.ndarray:
    """As the store keeps it."""
    return signature.numpy().astype(np.uint32)
