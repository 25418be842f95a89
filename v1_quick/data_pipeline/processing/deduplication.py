"""Find documents that repeat an earlier one, with datasketch: `MinHash` signatures in a `MinHashLSH` index.

Levels 2 and 3 do it by hand, with the same signatures, bands and decisions; theory in
`v2_handwritten/data_pipeline/processing/deduplication.md`. The library's index takes some kilobytes a kept document.

    v1 data --config smoke
"""

from datasketch import LeanMinHash, MinHash, MinHashLSH

from shared_data.cleaning.deduplication import FALSE_NEGATIVE_WEIGHT, FALSE_POSITIVE_WEIGHT, Deduplicator
from shared_data.settings import DeduplicationSettings


class SignatureIndex:
    """The kept documents, by the hash of their text and by the bands of their signature."""

    def __init__(self, threshold: float, permutations: int) -> None:
        weights = FALSE_POSITIVE_WEIGHT, FALSE_NEGATIVE_WEIGHT
        self._lsh = MinHashLSH(threshold=threshold, num_perm=permutations, weights=weights)
        self.bands, self.rows = self._lsh.b, self._lsh.r
        self._texts: dict[bytes, str] = {}
        self._kept: list[tuple[str, LeanMinHash]] = []

    def find_exact(self, digest: bytes) -> str | None:
        """The id of the document with this hash of its text."""
        return self._texts.get(digest)

    def find_near(self, minhash: LeanMinHash, threshold: float) -> tuple[str, float] | None:
        """Id and estimated similarity of the most similar document that shares a band, if it reaches the threshold."""
        best: tuple[str, float] | None = None
        for number in sorted(self._lsh.query(minhash)):  # of equally similar ones, the earliest
            document_id, known = self._kept[number]
            similarity = minhash.jaccard(known)
            if similarity >= threshold and (best is None or similarity > best[1]):
                best = (document_id, similarity)
        return best

    def add(self, document_id: str, digest: bytes, minhash: LeanMinHash | None) -> None:
        """Remember a document; without a signature only its text."""
        self._texts.setdefault(digest, document_id)
        if minhash is not None:
            self._lsh.insert(len(self._kept), minhash)
            self._kept.append((document_id, minhash))


def new_deduplicator(settings: DeduplicationSettings) -> Deduplicator:
    """A deduplicator that asks datasketch."""
    # Drawing the hash functions takes time.
    empty = MinHash(num_perm=settings.permutations, seed=settings.seed)

    def signature_of(shingles: set[str]) -> LeanMinHash:
        minhash = empty.copy()
        minhash.update_batch(shingle.encode() for shingle in shingles)
        return LeanMinHash(minhash)

    return Deduplicator(settings, SignatureIndex(settings.threshold, settings.permutations), signature_of)
