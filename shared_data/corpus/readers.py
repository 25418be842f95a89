"""Read local files as documents: .txt .jsonl .json .csv .parquet, each also as .gz, one block at a time.

Every fault a file can have is a `UserError` that names the file, the place and the remedy: missing, binary, of another
encoding, truncated, a malformed line, a missing field.

The standard library reads json, csv and gzip, pyarrow reads parquet. Level 1 calls `datasets.load_dataset` for documents
(`v1_quick/data_pipeline/download/open_corpus.py`).

    uv run python -c "from pathlib import Path; from shared_data.settings import DataSettings; \
from shared_data.corpus.readers import read_documents; \
print(next(read_documents(Path('README.md'), DataSettings(), True)))"
"""

import codecs
import csv
import gzip
import io
import json
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shared_data.corpus.bad_records import BadRecords
from shared_data.corpus.documents import Document
from shared_data.corpus.encodings import likely_encodings
from shared_data.corpus.formatting import format_text
from shared_data.corpus.json_records import json_records, without_surrogates
from shared_data.corpus.text_units import LONGEST_RECORD, TooLongError, split_at, split_text
from shared_data.errors import UserError, explain_os_error
from shared_data.settings import DataSettings

SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".parquet")
BLOCK = 1 << 16  # bytes read at a time
Records = Iterator[tuple[int, Any]]


def has_known_suffix(path: Path) -> bool:
    """Whether the name ends as one of the formats does; a file of any other name is read as text."""
    return format_of(path) in SUFFIXES


def read_documents(
    path: Path, settings: DataSettings, only_file: bool, bad: BadRecords | None = None
) -> Iterator[Document]:
    """Stream the documents of one file; `only_file` says that it is the whole corpus (see `text_units.py`).

    Records become text through `data.text_field`. An id is the path and the number of the document in it. bad: counts the records.
    """
    bad = bad or BadRecords(settings.on_bad_record)
    with _faults_named(path):
        unit, records = _open_records(path, settings.encoding, bad, settings.text_field)
        if records is not None:
            texts = texts_of(records, str(path), unit, settings.text_field, bad)
        else:
            texts = split_text(_text_chunks(path, settings.encoding), settings.text_unit, only_file)
        name = str(path).encode("utf-8", "replace").decode()  # a file name may hold bytes that are no UTF-8
        for number, text in enumerate(texts):
            yield Document(text, f"{name}#{number}")


def read_records(
    path: Path,
    encoding: str = "utf-8",
    csv_columns: Sequence[str] | None = None,
    bad: BadRecords | None = None,
) -> Iterator[tuple[str, Any]]:
    """Stream the records of one file whole, each with the words that name it in an error; of plain text there are none.

    csv_columns: what the columns of a CSV are called whose first line does not say it.
    bad: what happens to a malformed record; by default it is a `UserError`. Nothing can be read behind one in a .json file.
    """
    bad = bad or BadRecords()
    with _faults_named(path):
        unit, records = _open_records(path, encoding, bad, csv_columns=csv_columns)
        if records is None:
            raise UserError(
                f"{path} holds no records; give a file that ends in .jsonl, .json, .csv or .parquet"
            )
        for number, record in records:
            bad.read += 1
            where = f"{path}, {unit} {number:,}"
            if isinstance(record, dict):
                yield where, record
                continue
            bad.refuse(
                UserError(f"{where} is a {type(record).__name__}, not an object; write one object a record")
            )


def _open_records(
    path: Path,
    encoding: str,
    bad: BadRecords,
    column: str | None = None,
    csv_columns: Sequence[str] | None = None,
) -> tuple[str, Records | None]:
    """What a record of this format is called, and the numbered records; None for plain text.

    column: all that is needed of a parquet file, which is then all that is read.
    """
    match format_of(path):
        case ".parquet":
            return "row", _parquet_records(path, column)
        case ".jsonl":
            return "line", _jsonl_records(_text_chunks(path, encoding), path, bad)
        case ".json":
            return "record", json_records(_text_chunks(path, encoding), path)
        case ".csv":
            return "line", _csv_records(_text_chunks(path, encoding), path, bad, csv_columns)
        case _:
            return "line", None


def format_of(path: Path) -> str:
    """ ".csv" for corpus.csv and for corpus.csv.gz."""
    return path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


@contextmanager
def _faults_named(path: Path) -> Iterator[None]:
    """Turn what can be wrong with a file as a whole into one line for the user."""
    import pyarrow

    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path} is a truncated or damaged gzip file ({error}); copy or download it again"
        ) from error
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path} is not a whole parquet file ({str(error).splitlines()[0]}); copy or download it again"
        ) from error
    except UnicodeDecodeError as error:  # of a column of parquet, which is not checked when it is written
        raise UserError(f"{path} holds text that is not UTF-8; write it again from its source") from error
    except csv.Error as error:
        raise UserError(f"{path} is no valid CSV ({error}); correct the file or data.encoding") from error
    except TooLongError as error:
        raise UserError(
            f"{path} has a record of more than {error.args[0]:,} characters; cut it into smaller ones, or leave the file out"
        ) from error
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; correct data.source") from error
    except OSError as error:
        raise explain_os_error(error, path) or UserError(
            f"{path} cannot be read ({' '.join(str(error).split())}); check the disk and the file"
        ) from error


def _open_bytes(path: Path) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb")


def _text_chunks(path: Path, encoding: str) -> Iterator[str]:
    """The decoded text in blocks, with `\\n` for every kind of line end and without a byte order mark."""
    utf8 = codecs.lookup(encoding).name == "utf-8"
    bytes_decoder = codecs.getincrementaldecoder("utf-8-sig" if utf8 else encoding)()
    decoder = io.IncrementalNewlineDecoder(bytes_decoder, translate=True)
    offset = 0
    with _open_bytes(path) as file:
        while True:
            block = file.read(BLOCK)
            if utf8 and b"\0" in block:
                raise UserError(
                    f"{path} looks binary (a zero byte near byte {offset + block.index(0):,}); give a text file, or set data.encoding (utf-16?)"
                )
            try:
                yield decoder.decode(block, final=not block)
            except UnicodeError as error:  # of some encodings, as punycode, it is no UnicodeDecodeError
                reason, start = getattr(error, "reason", error), getattr(error, "start", 0)
                raise UserError(
                    f"{path} is not {encoding}: {reason} near byte {offset + start:,}; {encoding_remedy(block)}"
                ) from error
            if not block:
                return
            offset += len(block)


def encoding_remedy(content: bytes) -> str:
    """What to do about a file that is not in the encoding of the settings, by some of its bytes."""
    likely = likely_encodings(content)
    if not likely:
        return "set data.encoding (cp1252, latin-1, utf-16 …) or convert the file"
    others = f" (or {', '.join(likely[1:])})" if likely[1:] else ""
    return f"it looks like {likely[0]}: set data.encoding={likely[0]}{others}"


def remedy_for(path: Path, encoding: str) -> str:
    """What to do about a file that a library cannot read, by its first bytes."""
    with suppress(OSError, EOFError, zlib.error), _open_bytes(path) as file:
        content = file.read(BLOCK)
        likely = likely_encodings(content)
        if likely and encoding not in likely and format_of(path) != ".parquet":
            return encoding_remedy(content)
    return "correct the file, data.encoding or data.source"


def texts_of(
    records: Iterable[tuple[int, Any]], source: str, unit: str, text_field: str, bad: BadRecords
) -> Iterator[str]:
    """The text of each numbered record; those that are empty or null are passed over, and counted."""
    for number, record in records:
        bad.read += 1
        text = bad.attempt(format_text, record, text_field, f"{source}, {unit} {number:,}")
        if text is None:
            continue
        if not text or text.isspace():
            bad.leave_out(f"there is no text in {text_field!r}")
            continue
        if (
            "\r" in text
        ):  # in a string of JSON or parquet; of the other formats the reader makes every line end one
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        yield text


def _jsonl_records(chunks: Iterable[str], path: Path, bad: BadRecords) -> Records:
    for number, line in enumerate(split_at(chunks, "\n", LONGEST_RECORD), start=1):
        line = line.removeprefix("\ufeff")  # in files that were put together
        if not line or line.isspace():
            continue
        try:
            record = without_surrogates(json.loads(line), line)
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits
            fault = f"{path}, line {number:,} is not valid JSON ({error}); correct or remove that line"
            bad.refuse(UserError(fault), is_counted=False)
            continue
        yield number, record


def _csv_records(
    chunks: Iterable[str], path: Path, bad: BadRecords, columns: Sequence[str] | None = None
) -> Records:
    csv.field_size_limit(LONGEST_RECORD)  # by default it is 131,072 characters
    ended = False

    def lines() -> Iterator[str]:
        nonlocal ended
        for line in split_at(chunks, "\n", LONGEST_RECORD):
            yield line + "\n"
        ended = True

    rows, first = csv.DictReader(lines(), columns), 1
    rows.fieldnames = _distinct(rows.fieldnames or ())
    for row in rows:
        if ended:  # the csv module takes the rest of the file for the field
            raise UserError(
                f"{path}: a quote that opens in the record of line {first:,} is not closed; correct the record or copy the file again"
            )
        first = rows.line_num + 1
        if any(row.pop(None, ())):  # what is behind an unquoted comma
            fault = f"{path}, line {rows.line_num:,} has more fields than the first line names; put texts with commas in quotes"
            bad.refuse(UserError(fault), is_counted=False)
            continue
        yield rows.line_num, row


def _distinct(names: Sequence[str]) -> list[str]:
    """The names of columns; one that is there again becomes `name.1`, as pandas has it."""
    written, taken = set(names), set[str]()
    counts: Counter[str] = Counter()
    distinct = []
    for name in names:
        new = name
        while new in taken or (new != name and new in written):
            counts[name] += 1
            new = f"{name}.{counts[name]}"
        taken.add(new)
        distinct.append(new)
    return distinct


def _parquet_records(path: Path, column: str | None) -> Records:
    """Rows with one column only, or with all; parquet stores columns apart, so the others are never read."""
    import pyarrow.parquet

    with tempfile.TemporaryFile() as unpacked:
        if path.suffix.lower() == ".gz":  # parquet is read from its end, a gzip stream only from its start
            with gzip.open(path, "rb") as packed:
                shutil.copyfileobj(packed, unpacked)
        with pyarrow.parquet.ParquetFile(unpacked if path.suffix.lower() == ".gz" else path) as file:
            columns = file.schema_arrow.names
            if column is not None and column not in columns:
                yield 1, dict.fromkeys(columns)
            if twice := [name for name, count in Counter(columns).items() if count > 1]:
                raise UserError(f"{path} has several columns {twice[0]!r}; rename them")
            wanted = columns if column is None else [column]
            rows = (
                row for batch in file.iter_batches(256, columns=wanted) for row in _as_python(batch, path)
            )
            yield from enumerate(rows, start=1)


def _as_python(batch: Any, path: Path) -> list[dict[str, Any]]:
    """The rows of a batch of pyarrow, whose dates and time zones may be none of Python's."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        raise
    except (OverflowError, ValueError, LookupError) as error:
        raise UserError(
            f"{path} has a value that Python cannot hold ({error}); write its column as text, or leave it out"
        ) from error
