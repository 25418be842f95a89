"""A dataset of the Hugging Face hub by its name: `datasets.load_dataset(name, streaming=True)`.

Levels 2 and 3 ask the hub's HTTP interface by hand and keep the files; here nothing is kept.

    v1 data --set data.source=roneneldan/TinyStories --set data.max_megabytes=20
"""

from collections.abc import Iterator
from typing import Any

from shared_data.corpus.documents import Document
from shared_data.corpus.formatting import format_text
from shared_data.errors import UserError
from shared_data.settings import DataSettings


def hub_documents(settings: DataSettings) -> Iterator[Document]:
    """Stream the documents of `data.source`."""
    for number, (where, row) in enumerate(hub_records(settings)):
        text = format_text(row, settings.text_field, where)
        if text and not text.isspace():
            yield Document(text, f"{settings.source}#{number}")


def hub_records(settings: DataSettings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stream the whole records of `data.source`, each with the words that name it in an error."""
    import datasets

    name = settings.source
    try:
        rows = datasets.load_dataset(name, settings.hub_config, split=settings.hub_split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield f"hub dataset {name!r}, row {number:,}", row
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(
            f"hub dataset {name!r} does not exist, or is private or gated; check the name, or set data.source to a local file"
        ) from error
    except (ConnectionError, TimeoutError, OSError) as error:
        raise UserError(
            f"cannot reach the hub for {name!r} ({' '.join(str(error).split())[:150]}); check the connection, or set data.source to a local file"
        ) from error
    except ValueError as error:  # unknown configuration or split: the library's message lists the known ones
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"hub dataset {name!r}: {' '.join(str(error).split())[:200]}; set data.hub_config or data.hub_split"
        ) from error
