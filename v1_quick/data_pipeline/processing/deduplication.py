"""Find documents that repeat an earlier one, with datasketch: `MinHash` signatures in a `MinHashLSH` index.

Levels 2 and 3 do it by hand, with the same signatures, bands and decisions; theory in
`v2_handwritten/data_pipeline/processing/deduplication.md`. The library's index takes some kilobytes a kept document.
"""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from datasketch import LeanMinHash, MinHash, MinHashLSH

from shared_data.corpus.documents import Document
from shared_data.settings import DeduplicationSettings

_WORD = re.compile(r"\w+")
# Missing a duplicate costs more than checking a candidate in vain, because candidates are checked.
_FALSE_POSITIVE_WEIGHT, _FALSE_NEGATIVE_WEIGHT = 0.1, 0.9


def shingles(text: str, words: int) -> set[str]:
    """The overlapping runs of so many words, in lower case and without punctuation."""
    return _runs(_WORD.findall(text.lower()), words)


def _runs(found: list[str], words: int) -> set[str]:
    """Runs of so many words; a text shorter than one run is one run."""
    if not found:
        return set()
    return {" ".join(found[i : i + words]) for i in range(max(1, len(found) - words + 1))}


def minhash_signature(shingle_set: set[str], permutations: int, seed: int) -> Any:
    """The smallest hash of the set under each of many hash functions, as an array of 32-bit numbers."""
    return _minhash(shingle_set, permutations, seed).hashvalues


def _minhash(shingle_set: set[str], permutations: int, seed: int) -> LeanMinHash:
    minhash = _empty_minhash(permutations, seed).copy()
    minhash.update_batch(shingle.encode() for shingle in shingle_set)
    return LeanMinHash(minhash)


@lru_cache(maxsize=4)
def _empty_minhash(permutations: int, seed: int) -> MinHash:
    """Copies of it share the hash functions, which take longer to draw than to apply."""
    return MinHash(num_perm=permutations, seed=seed)


@lru_cache(maxsize=16)
def choose_bands(
    threshold: float,
    permutations: int,
    false_positive_weight: float = 0.5,
    false_negative_weight: float = 0.5,
) -> tuple[int, int]:
    """Bands and rows whose S-curve 1 - (1 - s^r)^b errs least around the threshold."""
    weights = (false_positive_weight, false_negative_weight)
    index = MinHashLSH(threshold=threshold, num_perm=permutations, weights=weights)
    return index.b, index.r


@dataclass
class DeduplicationReport:
    """What deduplication found."""

    documents: int = 0
    kept: int = 0
    bands: int = 0
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For report.json."""
        return {
            name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()
        }


class Deduplicator:
    """Remembers the documents it let pass, and recognises those that repeat one."""

    def __init__(self, settings: DeduplicationSettings) -> None:
        self.settings = settings
        bands, rows = choose_bands(
            settings.threshold, settings.permutations, _FALSE_POSITIVE_WEIGHT, _FALSE_NEGATIVE_WEIGHT
        )
        self.report = DeduplicationReport(bands=bands, rows=rows)
        self._index = MinHashLSH(num_perm=settings.permutations, params=(bands, rows))
        self._minhashes: dict[int, LeanMinHash] = {}
        self._ids: list[str] = []
        self._texts: dict[bytes, int] = {}

    def is_duplicate(self, document: Document) -> str | None:
        """The id of the earlier document that this one repeats, or None: then it is new, and remembered."""
        settings, report = self.settings, self.report
        report.documents += 1
        words = _WORD.findall(document.text.lower())
        digest = hashlib.sha1(" ".join(words).encode()).digest()
        if settings.exact and digest in self._texts:
            return self._found("exact", document, self._ids[self._texts[digest]], 1.0)
        number = len(self._ids)
        if settings.near and words:
            minhash = _minhash(_runs(words, settings.shingle_words), settings.permutations, settings.seed)
            found = self._find_near(minhash)
            if found is not None:
                return self._found("near", document, *found)
            self._index.insert(number, minhash)
            self._minhashes[number] = minhash
        self._texts.setdefault(digest, number)
        self._ids.append(document.id)
        report.kept += 1
        return None

    def _find_near(self, minhash: LeanMinHash) -> tuple[str, float] | None:
        """Id and estimated similarity of the most similar candidate, if it reaches the threshold."""
        best: tuple[str, float] | None = None
        for number in sorted(self._index.query(minhash)):  # of equally similar ones, the earliest
            similarity = minhash.jaccard(self._minhashes[number])
            if similarity >= self.settings.threshold and (best is None or similarity > best[1]):
                best = (self._ids[number], similarity)
        return best

    def _found(self, kind: str, document: Document, original: str, similarity: float) -> str:
        self.report.dropped[kind] += 1
        if len(self.report.examples) < 10:
            example = {
                "kind": kind,
                "id": document.id,
                "original": original,
                "similarity": round(similarity, 3),
            }
            self.report.examples.append({**example, "text": document.text[:200]})
        return original
