"""How well did cleaning and deduplication do, where the truth is known?"""

from shared_data.documents import Document


class TruthScore:
    """Compares decisions with the labels of the story world; without labels it stays silent."""

    def add(self, document: Document, cleaned: Document | None, original: str | None) -> None:
        """Count one document: as it came, as cleaning left it (None: dropped), and what it was found to repeat."""

    def as_dict(self) -> dict[str, float]:
        """Flat numbers; empty without labels."""
        return {}
