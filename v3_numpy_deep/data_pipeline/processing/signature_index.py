"""The memory of a deduplicator: which document has this text, which have a band of this signature in common?

A Python dictionary a band would be three lines and two kilobytes a document. Here the tables are flat arrays, a hash table
with chains; what is rarely read (the signature, to check a candidate, and the id) lies in a file (`DocumentStore`):

    heads[band][slot]       the newest document with a key in this slot, plus one (0: none)
    older[document][band]   the next older one in the same slot, plus one
    keys[document][band]    the 32-bit key, from which the slot follows

That is 8 (bands + 1) + 8 bytes of memory a kept document. The text itself is one more "band", whose key is a hash of it.
Level 1: datasketch's dictionaries. Level 2: the same tables walked one chain after the other; here all bands take each
step together.
"""

import numpy as np
from jaxtyping import UInt32

from shared_data.cleaning.document_store import DocumentStore

_SLOTS = 1 << 17  # of each band; chains grow longer than one beyond that many documents


class SignatureIndex:
    """Documents by the hash of their text and by the bands of their signature."""

    def __init__(self, bands: int, rows: int, permutations: int) -> None:
        self.bands, self.rows = bands, rows
        self._heads = np.zeros((bands + 1, _SLOTS), dtype=np.uint32)
        self._older = np.zeros((1024, bands + 1), dtype=np.uint32)
        self._keys = np.zeros((1024, bands + 1), dtype=np.uint32)
        self._store = DocumentStore(permutations)
        # Odd multipliers: the key of a band is the upper half of a sum of products modulo 2^64.
        self._multipliers = np.random.default_rng(0).integers(0, 1 << 63, rows, dtype=np.uint64) * np.uint64(
            2
        ) + np.uint64(1)

    def __len__(self) -> int:
        """Documents remembered."""
        return len(self._store)

    def memory_bytes(self) -> int:
        """Bytes of the tables in memory."""
        tables = self._heads.nbytes + self._older.nbytes + self._keys.nbytes
        return tables + self._store.memory_bytes()

    def find_exact(self, digest: bytes) -> str | None:
        """The id of the document with this hash of its text."""
        candidates = self._chains(np.array([self.bands]), np.frombuffer(digest[:4], dtype="<u4"))
        return self._store.find_exact(candidates, digest)

    def find_near(
        self, signature: UInt32[np.ndarray, "permutations"], threshold: float
    ) -> tuple[str, float] | None:
        """Id and estimated similarity of the most similar document that shares a band, if it reaches the threshold."""
        candidates = self._chains(np.arange(self.bands), self._band_keys(signature))
        return self._store.find_near(candidates, signature, threshold)

    def add(
        self, document_id: str, digest: bytes, signature: UInt32[np.ndarray, "permutations"] | None
    ) -> None:
        """Remember a document; without a signature only its text."""
        number = len(self)
        if number == len(self._keys):
            self._grow()
        keys = np.frombuffer(digest[:4], dtype="<u4").astype(np.uint32)
        tables = np.array([self.bands])
        if signature is not None:
            keys, tables = np.concatenate([self._band_keys(signature), keys]), np.arange(self.bands + 1)
        slots = keys % _SLOTS
        self._keys[number, tables] = keys
        self._older[number, tables] = self._heads[tables, slots]
        self._heads[tables, slots] = number + 1
        self._store.append(document_id, digest, signature)

    def _grow(self) -> None:
        """Half as many rows again; `resize` lets the operating system move pages instead of copying."""
        rows = len(self._keys) * 3 // 2
        self._older.resize((rows, self.bands + 1), refcheck=False)
        self._keys.resize((rows, self.bands + 1), refcheck=False)

    def _band_keys(self, signature: UInt32[np.ndarray, "permutations"]) -> UInt32[np.ndarray, "bands"]:
        """A 32-bit hash of each band; if two bands collide, the estimate over the whole signature tells them apart."""
        banded = signature[: self.bands * self.rows].reshape(self.bands, self.rows)
        return ((banded * self._multipliers).sum(axis=1) >> np.uint64(32)).astype(np.uint32)

    def _chains(self, tables: np.ndarray, keys: np.ndarray) -> list[int]:
        """Documents with these keys in these tables, from the newest back; all chains are followed in step."""
        found: list[int] = []
        links = self._heads[tables, keys % _SLOTS]
        while links.any():
            linked = links > 0
            tables, keys, numbers = tables[linked], keys[linked], links[linked] - 1
            found.extend(numbers[self._keys[numbers, tables] == keys].tolist())
            links = self._older[numbers, tables]
        return found
