"""How well did cleaning and deduplication do, where the truth is known?

A document of the story world says what should become of it: stay as it is, become `expected_text`, be dropped, or be found
a duplicate of another. Precision asks of what was done how much was right, recall of what was to be done how much was:

    cleaning   done:  the text was changed or the document dropped by a rule
               to do: the document needs a repair, or is to be dropped by a rule
               right: the repaired text is the expected one letter by letter, or the document was rightly dropped
    duplicates done:  found to repeat a document;   to do: repeats one;   right: the one it does repeat

A clean story that cleaning touches, and a repair that is nearly right, count against cleaning.

    v2 data --config smoke        # cleaning_precision, cleaning_recall, deduplication_precision, deduplication_recall
"""

from dataclasses import dataclass

from shared_data.corpus.documents import Document


@dataclass
class _Score:
    done: int = 0
    to_do: int = 0
    right: int = 0

    def add(self, done: bool, to_do: bool, right: bool) -> None:
        self.done += done
        self.to_do += to_do
        self.right += done and to_do and right

    def as_dict(self, name: str) -> dict[str, float]:
        """Nothing done in vain is precision 1; nothing to do is recall 1."""
        precision = self.right / self.done if self.done else 1.0
        recall = self.right / self.to_do if self.to_do else 1.0
        return {f"{name}_precision": precision, f"{name}_recall": recall}


class TruthScore:
    """Compares decisions with the labels of the story world; for other corpora it stays silent."""

    def __init__(self) -> None:
        self._labelled = 0
        self._cleaning, self._deduplication = _Score(), _Score()

    def add(self, document: Document, cleaned: Document | None, original: str | None) -> None:
        """Count one document: as it came, as cleaning left it (None: dropped), and the id it was found to repeat."""
        if document.label is None:
            return
        self._labelled += 1
        is_duplicate = document.duplicate_of is not None
        # What cleaning should leave of it; a duplicate is not for cleaning to judge, and stays as it is.
        expected = document.text if is_duplicate else document.expected_text
        result = cleaned.text if cleaned is not None else None
        self._cleaning.add(result != document.text, expected != document.text, result == expected)
        self._deduplication.add(original is not None, is_duplicate, original == document.duplicate_of)

    def as_dict(self) -> dict[str, float]:
        """Flat numbers; empty without labels."""
        if not self._labelled:
            return {}
        return self._cleaning.as_dict("cleaning") | self._deduplication.as_dict("deduplication")
