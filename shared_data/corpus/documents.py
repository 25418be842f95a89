"""The unit that flows through the data pipeline: one document."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a corpus, with the truth about it where the story world knows it."""

    text: str
    id: str
    label: str | None = None  # story world: the kind of dirt this is, "clean" for a story without any
    duplicate_of: str | None = None  # story world: the id of the document this one repeats
    expected_text: str | None = None  # story world: what cleaning should leave; None with a label: drop it
    log2_probability: float | None = None  # story world: of the whole text, in bits
