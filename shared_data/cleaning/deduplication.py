"""Drop documents that repeat an earlier one, exactly or nearly: the decisions and the report.

Which documents are candidates is found by each level's index of MinHash signatures (`data_pipeline/processing/deduplication.py`);
theory in `v2_handwritten/data_pipeline/processing/deduplication.md`.

    uv run python -c "from shared_data.cleaning.deduplication import shingles; print(shingles('The cat sat. The cat ran!', 2))"
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from shared_data.cleaning.words import split_words
from shared_data.corpus.documents import Document
from shared_data.settings import DeduplicationSettings

# Missing a duplicate costs more than checking a candidate in vain, because candidates are checked.
FALSE_POSITIVE_WEIGHT, FALSE_NEGATIVE_WEIGHT = 0.1, 0.9
_EXAMPLES = 10  # kept in the report


def shingles(text: str, words: int) -> set[str]:
    """The overlapping runs of so many words, in lower case and without punctuation; a shorter text is one run.

    Where a script has no spaces between words, a run is of so many characters (`words.py`).

    >>> sorted(shingles("The cat sat. The cat ran!", 2)), sorted(shingles("宝玉笑道", 3))
    (['cat ran', 'cat sat', 'sat the', 'the cat'], ['宝 玉 笑', '玉 笑 道'])
    """
    return _runs(split_words(text.lower()), words)


def _runs(units: list[str], length: int) -> set[str]:
    """Runs of so many words or characters."""
    if not units:
        return set()
    return {" ".join(units[i : i + length]) for i in range(max(1, len(units) - length + 1))}


class SignatureIndex(Protocol):
    """What a level remembers of the documents that were kept; a signature is whatever its MinHash function returns."""

    bands: int
    rows: int

    def find_exact(self, digest: bytes) -> str | None:
        """The id of the document with this hash of its text."""

    def find_near(self, signature: Any, threshold: float) -> tuple[str, float] | None:
        """Id and estimated similarity of the most similar document that shares a band, if it reaches the threshold."""

    def add(self, document_id: str, digest: bytes, signature: Any | None) -> None:
        """Remember a document; without a signature only its text."""


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
    """Remembers the documents that were kept, and recognises those that repeat one."""

    def __init__(
        self,
        settings: DeduplicationSettings,
        index: SignatureIndex,
        signature_of: Callable[[set[str]], Any],
    ) -> None:
        self.settings = settings
        self.report = DeduplicationReport(bands=index.bands, rows=index.rows)
        self._index, self._signature_of = index, signature_of

    def find_original(self, document: Document) -> str | None:
        """The id of the earlier document that this one repeats, or None: then it is new, and remembered."""
        settings, report = self.settings, self.report
        report.documents += 1
        units = split_words(document.text.lower())
        digest = hashlib.sha1(" ".join(units).encode()).digest()
        if settings.exact and (original := self._index.find_exact(digest)) is not None:
            return self._found("exact", document, original, 1.0)
        signature = None
        if settings.near and units:
            signature = self._signature_of(_runs(units, settings.shingle_words))
            found = self._index.find_near(signature, settings.threshold)
            if found is not None:
                return self._found("near", document, *found)
        self._index.add(document.id, digest, signature)
        report.kept += 1
        return None

    def _found(self, kind: str, document: Document, original: str, similarity: float) -> str:
        self.report.dropped[kind] += 1
        if len(self.report.examples) < _EXAMPLES:
            example = {
                "kind": kind,
                "id": document.id,
                "original": original,
                "similarity": round(similarity, 3),
            }
            self.report.examples.append({**example, "text": document.text[:200]})
        return original
