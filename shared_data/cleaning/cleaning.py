"""Clean a stream of documents: repair what can be repaired, drop what is not worth training on, count both.

Repairs are in `repair.py`, the rules of quality in `filters.py`; theory in `cleaning.md`. Level 1 replaces the repairs of the
encoding by ftfy's.

    v2 data --set data.source=web.jsonl        # then read runs/v2/tiny/data/report.json: what was dropped, and why
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from shared_data.cleaning.filters import rejection_reason
from shared_data.cleaning.repair import Repairs, join_surrogates, repair_and_name
from shared_data.corpus.documents import Document
from shared_data.settings import CleaningSettings

_EXAMPLES = 3  # kept of each kind
_EXAMPLE_LENGTH = 200  # characters


@dataclass
class CleaningReport:
    """What cleaning did: how often each repair and each rule applied, with examples."""

    documents: int = 0
    kept: int = 0
    repaired: int = 0
    repairs: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add_example(self, kind: str, text: str) -> None:
        """Keep the beginning of the first few texts of a kind."""
        examples = self.examples.setdefault(kind, [])
        if len(examples) < _EXAMPLES:
            examples.append(text[:_EXAMPLE_LENGTH])

    def as_dict(self) -> dict[str, Any]:
        """For report.json."""
        return {
            name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()
        }


class Cleaner:
    """Repairs and filters documents one by one; memory does not grow."""

    def __init__(
        self,
        settings: CleaningSettings,
        languages: Collection[str] | None = None,
        repairs: Repairs | None = None,
    ) -> None:
        """`languages` are the codes to keep, None for every language; `repairs` replace those of `repair.py`."""
        self.settings, self.languages = settings, languages
        self.repairs = repairs
        self.report = CleaningReport()

    def clean(self, document: Document) -> Document | None:
        """The document with its text repaired, or None if it is dropped."""
        report = self.report
        report.documents += 1
        if not self.settings.enabled:
            report.kept += 1
            # The least: text that has a UTF-8 form.
            return replace(document, text=join_surrogates(document.text))
        text, repairs = repair_and_name(document.text, self.settings.boilerplate_phrases, self.repairs)
        reason = rejection_reason(text, self.settings, self.languages)
        if reason is not None:
            report.dropped[reason] += 1
            report.add_example(reason, document.text)
            return None
        report.kept += 1
        if not repairs:
            return document
        report.repaired += 1
        report.repairs.update(repairs)
        for name in repairs:
            report.add_example(name, document.text)
        return replace(document, text=text)
