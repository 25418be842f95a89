"""Files that are either whole or not there: everything a run writes goes to a temporary name first, then is renamed.

POSIX promises that `rename` replaces a file in one step, so a reader, or a run killed at any moment, sees the old file or
the new one and never half of one. A full disk or a read-only folder is a `UserError` that names the path.

    uv run python -c "from shared_data.files import write_json; write_json('runs/example.json', {'answer': 42})"
"""

import json
import os
import secrets
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

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


# The largest tokenizer.json has some 35 MB; Jinja, `repr` and pydantic call themselves for each level of nesting.
LARGEST_JSON, DEEPEST_JSON = 100 << 20, 100


def read_json(path: Path | str, kind: type = dict) -> Any:
    """Read a JSON file; raises `UserError` where it is missing, is not JSON, or holds another kind of value than a `dict`.

    As in transformers it is UTF-8 without a byte-order mark. A name that stands twice in an object is refused: programs differ in which one counts.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_JSON + 1)
        if len(content) > LARGEST_JSON:
            raise ValueError(f"more than {LARGEST_JSON >> 20} MiB")
        value = parse_json(content)
        _check_depth(value)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; run the stage that writes it, or correct the path") from error
    except (ValueError, RecursionError) as error:  # malformed JSON, or bytes that are no UTF-8
        raise UserError(
            f"{path} is not valid JSON ({error!s:.150}); it is damaged: make or copy it again"
        ) from error
    except OSError as error:
        raise explain_os_error(error, path) or error from error
    if not isinstance(value, kind):
        raise UserError(
            f"{path} holds a {type(value).__name__}, not a {kind.__name__}; it is damaged: make or copy it again"
        )
    return value


def parse_json(content: bytes) -> Any:
    """A value from JSON; raises `ValueError` for NaN and infinity too, which Python reads and `write_json` refuses."""
    return json.loads(content.decode("utf-8"), parse_constant=_no_json, object_pairs_hook=_object)


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name!r:.60} stands twice in an object")
    return values


def _check_depth(value: Any) -> None:
    """Raise `ValueError` for lists and objects inside of more others than any file of ours or of a library has."""
    level = [value]
    for _ in range(DEEPEST_JSON):
        level = [child for each in level for child in _children(each) if type(child) in (dict, list)]
    if level:
        raise ValueError(f"more than {DEEPEST_JSON} levels of nesting")


def _children(value: Any) -> Any:
    return value.values() if type(value) is dict else value if type(value) is list else ()


def is_number(value: Any) -> bool:
    """Whether a value that was read is a finite number that fits a float; a flag is none, nor is an integer of 400 digits."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def read_bytes(path: Path) -> bytes | None:
    """The content of a file; None where there is none."""
    return path.read_bytes() if path.is_file() else None


def restore(path: Path, content: bytes | None) -> None:
    """Give a file the content it had, atomically; None where there was no file."""
    if content is None:
        path.unlink(missing_ok=True)
    else:
        with atomic_write(path) as file:
            file.write(content)


def sweep(folder: Path) -> None:
    """Delete what killed processes left under temporary names in a folder."""
    for leftover in folder.glob(".*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into a folder, created if need be; the lock goes with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows has no flock: two runs at once stay the user's own care there
        yield
        return
    lock = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(lock, "a+")  # noqa: SIM115  closed below; the lock lives as long as it is open
    except OSError as error:
        raise explain_os_error(error, folder) or error from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process writes into {folder}; wait for it, or choose another folder with --out"
            ) from error
        try:
            yield
        finally:
            if os.listdir(folder) == [lock.name]:  # refused before anything was made
                lock.unlink()
                folder.rmdir()
