"""Open a corpus: local files and hub datasets by `datasets.load_dataset(..., streaming=True)`, stories from the story world.

Levels 2 and 3 read the formats by hand (`shared_data/corpus/readers.py`, `hub.py`) and get the same documents. JSON and CSV are read by
hand here, too: the library makes a date of a text like 2024-05-01 in JSON, and takes the first column of a CSV for names of rows where
lines have more fields than the first one. It knows no packed parquet, and its errors name no line.

    v1 data --set data.source=roneneldan/TinyStories --set data.max_megabytes=20
"""

import glob
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from datasets import load_dataset

from shared_data.corpus import open_corpus as shared
from shared_data.corpus import readers
from shared_data.corpus.bad_records import BadRecords
from shared_data.corpus.documents import Document
from shared_data.corpus.readers import texts_of
from shared_data.corpus.text_units import split_text
from shared_data.errors import UserError, library_errors
from shared_data.settings import DataSettings


def read_documents(
    path: Path, settings: DataSettings, only_file: bool, bad: BadRecords | None = None
) -> Iterator[Document]:
    """Stream the documents of one file; `only_file` says that it is the whole corpus (`text_units.py`)."""
    kind, bad = readers.format_of(path), bad or BadRecords(settings.on_bad_record)
    if kind in (".json", ".jsonl", ".csv"):
        yield from readers.read_documents(path, settings, only_file, bad)
        return
    # The byte order mark that some programs write is no text; the parquet reader passes it over itself.
    encoding = "utf-8-sig" if settings.encoding.lower() in ("utf-8", "utf8") else settings.encoding
    builder, options = (
        ("parquet", {}) if kind == ".parquet" else ("text", {"encoding": encoding, "keep_linebreaks": True})
    )
    files = glob.escape(str(path))  # a name with brackets is no pattern
    with library_errors(str(path), readers.remedy_for(path, settings.encoding)):
        rows: Any = load_dataset(builder, data_files=files, split="train", streaming=True, **options)
        if builder == "text":
            texts = split_text(_lines(rows, path), settings.text_unit, only_file)
        else:
            texts = texts_of(enumerate(rows, start=1), str(path), "record", settings.text_field, bad)
        for number, text in enumerate(texts):
            yield Document(text, f"{path}#{number}")


def _lines(rows: Iterable[dict[str, str]], path: Path) -> Iterator[str]:
    """The lines of a text file. Raises `UserError` for one with a zero byte."""
    for row in rows:
        if "\0" in row["text"]:
            raise UserError(
                f"{path} looks binary (it has a zero byte); give a text file, or set data.encoding (utf-16?)"
            )
        yield row["text"]


def hub_documents(settings: DataSettings, bad: BadRecords | None = None) -> Iterator[Document]:
    """Stream the documents of the hub dataset `data.source`."""
    name, bad = f"hub dataset {settings.source!r}", bad or BadRecords(settings.on_bad_record)
    remedy = "check the name, data.hub_config and data.hub_split, or set data.source to a local file"
    with library_errors(name, remedy):
        rows = load_dataset(settings.source, settings.hub_config, split=settings.hub_split, streaming=True)
        texts = texts_of(enumerate(rows, start=1), name, "row", settings.text_field, bad)
        for number, text in enumerate(texts):
            yield Document(text, f"{settings.source}#{number}")


open_corpus = partial(shared.open_corpus, read_file=read_documents, read_hub=hub_documents)
