"""The unit that flows through the data pipeline: one document."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared_data.errors import UserError


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a corpus, with the truth about it where the story world knows it."""

    text: str
    id: str
    label: str | None = None  # story world: the kind of dirt this is, "clean" for a story as it was told
    duplicate_of: str | None = None  # story world: the id of the document this one repeats
    expected_text: str | None = None  # story world: what cleaning should leave; None with a label: drop it
    log2_probability: float | None = None  # story world: of the whole text, in bits


def read_documents(path: Path) -> Iterator[Document]:
    """Stream the documents of a split that the stage `data` wrote. Raises `UserError` for a damaged file."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                document = Document(
                    record["text"], record["id"], log2_probability=record.get("log2_probability")
                )
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{path}, line {number}, is no document; make it again with the stage `data` and --force"
                ) from error
            yield document
