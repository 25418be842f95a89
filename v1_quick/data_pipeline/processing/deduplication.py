"""Find documents that repeat an earlier one: datasketch signs them, a temporary SQLite database remembers them.

`MinHash` makes the signatures, `MinHashLSH` chooses the bands. Its own tables are dictionaries, which take seven kilobytes a kept
document; its other stores (Redis, Cassandra) are servers. A table on disk that is indexed by the bands answers the same question
in the same words, and memory holds SQLite's page cache only. Levels 2 and 3 do it by hand, with the same signatures, bands and
decisions; theory in `v2_handwritten/data_pipeline/processing/deduplication.md`.

    v1 data --config smoke
"""

import sqlite3

from datasketch import LeanMinHash, MinHash, MinHashLSH

from shared_data.cleaning.deduplication import FALSE_NEGATIVE_WEIGHT, FALSE_POSITIVE_WEIGHT, Deduplicator
from shared_data.settings import DeduplicationSettings

_TABLES = """
PRAGMA cache_size = -16000;  -- kilobytes
PRAGMA journal_mode = OFF;
CREATE TABLE documents (number INTEGER PRIMARY KEY, id TEXT, digest BLOB, signature BLOB);
CREATE INDEX texts ON documents (digest);
CREATE TABLE bands (key BLOB, number INTEGER, PRIMARY KEY (key, number)) WITHOUT ROWID;
"""


class SignatureIndex:
    """The kept documents, by the hash of their text and by the bands of their signature."""

    def __init__(self, threshold: float, permutations: int) -> None:
        weights = FALSE_POSITIVE_WEIGHT, FALSE_NEGATIVE_WEIGHT
        lsh = MinHashLSH(threshold=threshold, num_perm=permutations, weights=weights)
        self.bands, self.rows = lsh.b, lsh.r
        self._database = sqlite3.connect("")  # a file that goes with the connection
        self._database.executescript(_TABLES)

    def find_exact(self, digest: bytes) -> str | None:
        """The id of the document with this hash of its text."""
        query = "SELECT id FROM documents WHERE digest = ? ORDER BY number LIMIT 1"
        row = self._database.execute(query, [digest]).fetchone()
        return row[0] if row else None

    def find_near(self, minhash: LeanMinHash, threshold: float) -> tuple[str, float] | None:
        """Id and estimated similarity of the most similar document that shares a band, if it reaches the threshold."""
        keys = self._band_keys(minhash)
        query = f"""SELECT DISTINCT number, id, signature FROM bands JOIN documents USING (number)
                    WHERE key IN ({", ".join("?" * len(keys))}) ORDER BY number"""
        best: tuple[str, float] | None = None
        for _, document_id, signature in self._database.execute(query, keys):
            similarity = minhash.jaccard(LeanMinHash.deserialize(signature))
            if similarity >= threshold and (best is None or similarity > best[1]):
                best = (document_id, similarity)  # of equally similar ones, the earliest
        return best

    def add(self, document_id: str, digest: bytes, minhash: LeanMinHash | None) -> None:
        """Remember a document; without a signature only its text."""
        signature = None if minhash is None else bytearray(minhash.bytesize())
        if minhash is not None:
            minhash.serialize(signature)
        query = "INSERT INTO documents (id, digest, signature) VALUES (?, ?, ?)"
        number = self._database.execute(query, [document_id, digest, signature]).lastrowid
        if minhash is not None:
            rows = [(key, number) for key in self._band_keys(minhash)]
            self._database.executemany("INSERT INTO bands VALUES (?, ?)", rows)

    def _band_keys(self, minhash: LeanMinHash) -> list[bytes]:
        """The rows of each band, behind its number."""
        values, r = minhash.digest(), self.rows
        return [band.to_bytes(2) + values[band * r : (band + 1) * r].tobytes() for band in range(self.bands)]


def new_deduplicator(settings: DeduplicationSettings) -> Deduplicator:
    """A deduplicator that asks datasketch."""
    # Drawing the hash functions takes time.
    empty = MinHash(num_perm=settings.permutations, seed=settings.seed)

    def signature_of(shingles: set[str]) -> LeanMinHash:
        minhash = empty.copy()
        minhash.update_batch(shingle.encode() for shingle in shingles)
        return LeanMinHash(minhash)

    return Deduplicator(settings, SignatureIndex(settings.threshold, settings.permutations), signature_of)
