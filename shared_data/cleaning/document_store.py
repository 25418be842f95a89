"""What a deduplicator rarely reads again, in a temporary file: the hash of each kept text, its signature and its id.

Memory holds eight bytes a document, where its record begins.

    store = DocumentStore(permutations=128)
    store.append("id-0", digest, signature)
    store.read(0)
"""

import tempfile
from array import array
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt32

_DIGEST = 20  # bytes of SHA-1


class DocumentStore:
    """Records by their number, in the order of arrival."""

    def __init__(self, permutations: int) -> None:
        self._permutations = permutations
        self._offsets = array("Q", [0])  # where each record begins in the file, and where the next one will
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the store

    def __len__(self) -> int:
        """Documents remembered."""
        return len(self._offsets) - 1

    def memory_bytes(self) -> int:
        """Bytes in memory."""
        return len(self._offsets) * self._offsets.itemsize

    def append(
        self, document_id: str, digest: bytes, signature: UInt32[np.ndarray, "permutations"] | None
    ) -> None:
        """Write the next record."""
        packed = signature.tobytes() if signature is not None else bytes(4 * self._permutations)
        record = digest + packed + document_id.encode()
        self._file.seek(self._offsets[-1])
        self._file.write(record)
        self._offsets.append(self._offsets[-1] + len(record))

    def read(self, number: int) -> tuple[bytes, UInt32[np.ndarray, "permutations"], str]:
        """Hash of the text, signature and id of a document."""
        start, end = self._offsets[number], self._offsets[number + 1]
        self._file.seek(start)
        record = self._file.read(end - start)
        middle = _DIGEST + 4 * self._permutations
        return record[:_DIGEST], np.frombuffer(record[_DIGEST:middle], np.uint32), record[middle:].decode()

    def find_exact(self, candidates: Iterable[int], digest: bytes) -> str | None:
        """The id of the first candidate with this hash of its text."""
        for number in candidates:
            known, _, document_id = self.read(number)
            if known == digest:
                return document_id
        return None

    def find_near(
        self, candidates: Iterable[int], signature: UInt32[np.ndarray, "permutations"], threshold: float
    ) -> tuple[str, float] | None:
        """Id and estimated similarity of the most similar candidate, if it reaches the threshold."""
        best: tuple[str, float] | None = None
        for number in sorted(set(candidates)):  # of equally similar ones, the earliest
            _, known, document_id = self.read(number)
            similarity = float((known == signature).mean())
            if similarity >= threshold and (best is None or similarity > best[1]):
                best = (document_id, similarity)
        return best
