"""Read local files as documents with `datasets.load_dataset(..., streaming=True)`.

Plain text is streamed line by line and joined into documents by the rules of `shared_data/text_units.py`. Levels 2 and 3
read the formats by hand.
"""

import gzip
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shared_data.cleaning.text_units import split_text
from shared_data.corpus.documents import Document
from shared_data.corpus.formatting import format_text
from shared_data.errors import UserError
from shared_data.settings import DataSettings

SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".parquet")
_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def has_known_suffix(path: Path) -> bool:
    """Whether the name ends as one of the formats does; without that, a file given by its full name is read as text."""
    return _format_of(path) in SUFFIXES


def read_documents(path: Path, settings: DataSettings, only_file: bool) -> Iterator[Document]:
    """Stream the documents of one file; `only_file` says that it is the whole corpus (see `shared_data/text_units.py`).

    Records become text through `data.text_field`. An id is the path and the number of the document in it.
    """
    builder = _BUILDERS.get(_format_of(path), "text")
    options: dict[str, Any] = {}
    if builder == "text":
        options = {"keep_linebreaks": True, "encoding": settings.encoding}
    elif builder in ("json", "csv"):
        options = {"encoding": settings.encoding}
    with _faults_named(path, settings.encoding):
        rows = _load(builder, path, options)
        if builder == "text":
            texts = split_text((row["text"] for row in rows), settings.text_unit, only_file)
        else:
            texts = _texts_of(rows, path, settings.text_field)
        for number, text in enumerate(texts):
            yield Document(text, f"{path}#{number}")


@contextmanager
def _faults_named(path: Path, encoding: str) -> Iterator[None]:
    """Turn the library's own errors, pyarrow's, pandas' and the file system's into one line for the user."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        line = _first_bad_line(path, encoding) if _format_of(path) == ".jsonl" else None
        if line is not None:
            raise UserError(
                f"{path}, line {line:,} is not a JSON object; correct or remove that line"
            ) from error
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {reason}); correct the file, data.encoding or data.source"
        ) from error


def read_records(path: Path, encoding: str = "utf-8") -> Iterator[tuple[str, Any]]:
    """Stream the records of one file whole, each with the words that name it in an error; of plain text there are none."""
    builder = _BUILDERS.get(_format_of(path))
    if builder is None:
        raise UserError(f"{path} holds no records; give a file that ends in .jsonl, .json, .csv or .parquet")
    with _faults_named(path, encoding):
        rows = _load(builder, path, {} if builder == "parquet" else {"encoding": encoding})
        unit = "row" if builder == "parquet" else "record"
        for number, row in enumerate(rows, start=1):
            # `datasets` gives every record all fields of the file; those it did not have are None.
            yield (
                f"{path}, {unit} {number:,}",
                {name: value for name, value in row.items() if value is not None},
            )


def _first_bad_line(path: Path, encoding: str) -> int | None:
    """The number of the first line that is no JSON object, which the library's error does not tell; None if none is."""
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    with suppress(OSError, EOFError, UnicodeError), opener(path, "rt", encoding=encoding) as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line) if line.strip() else {}
            except json.JSONDecodeError:
                return number
            if not isinstance(record, dict):
                return number
    return None


def _format_of(path: Path) -> str:
    """ ".csv" for corpus.csv and for corpus.csv.gz."""
    return path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def _load(builder: str, path: Path, options: dict[str, Any]) -> Iterable[dict[str, Any]]:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it would print its errors beside ours
    return datasets.load_dataset(builder, data_files=str(path), split="train", streaming=True, **options)


def _texts_of(rows: Iterable[dict[str, Any]], path: Path, text_field: str) -> Iterator[str]:
    """The text of each row; empty and null texts are passed over."""
    for number, row in enumerate(rows, start=1):
        text = format_text(row, text_field, f"{path}, record {number:,}")
        if text and not text.isspace():
            yield text
