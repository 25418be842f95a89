"""Files that are either whole or not there: everything a run writes goes to a temporary name first, then is renamed.

POSIX promises that `rename` replaces a file in one step, so a reader, or a run killed at any moment, sees the old file or
the new one and never half of one. A full disk or a read-only folder is a `UserError` that names the path.

    python -c "from shared_data.files import write_json; write_json('runs/example.json', {'answer': 42})"
"""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from shared_data.errors import UserError, explain_os_error


@contextmanager
def atomic_write(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that appears under its name only when the block ends without an error.

    Text modes are UTF-8 with `\\n`. Folders on the way are created. Raises `UserError` where the disk is full or the
    folder cannot be written; the file that was there before stays as it was.
    """
    path = Path(path)
    # Beside the target, because a rename is only atomic inside one file system; random, because two may write at once.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # without it, a power cut can leave an empty file under the new name
        os.replace(temporary, path)
    except OSError as error:
        explained = explain_os_error(error, path) if _is_about(error, temporary, path) else None
        raise explained or error from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _is_about(error: OSError, temporary: Path, path: Path) -> bool:
    """Whether the error is about the file being written, not about another one that the block reads meanwhile."""
    named = error.filename
    return named is None or Path(os.fsdecode(named)) in (temporary, path, *path.parents)


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """A value as JSON in UTF-8 and a line end: readable letters, escapes only where UTF-8 has no bytes for them."""
    try:
        return (json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError:  # a lone surrogate: half of a pair that some program tore apart
        return (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode()


def write_json(path: Path | str, value: Any) -> None:
    """Write a value as indented JSON, atomically; NaN and infinity are refused, as JSON has neither."""
    content = json_bytes(value, indent=2)
    with atomic_write(path) as file:
        file.write(content)


def read_json(path: Path | str) -> Any:
    """Read a JSON file; raises `UserError` where it is missing or is not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; run the stage that writes it, or correct the path") from error
    except ValueError as error:  # malformed JSON, or bytes that are no UTF-8
        raise UserError(
            f"{path} is not valid JSON ({error}); it is damaged: make or copy it again"
        ) from error
    except OSError as error:
        raise explain_os_error(error, path) or error from error
