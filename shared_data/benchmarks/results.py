"""What an evaluation leaves: a line of JSON for each item, and the scores of each task as one object.

The lines are those that lm-evaluation-harness calls samples: `doc`, `target`, `arguments`, `resps`, `filtered_resps`, and the value of each
metric. They are written as items are finished. A killed evaluation that is started again with the same file goes on: an item whose
`inputs` (model, prompt and target) are the same is not computed again.

    with open_items(Path("items.jsonl"), expected, force=False) as items: ...
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from shared_data.errors import UserError
from shared_data.files import atomic_write, json_bytes, read_json, write_json

Line = dict[str, Any]
Key = tuple[str, int]  # task and number of the item
DIGITS = 6
_BEGINNING = b'{"task": "'  # of each line


class ItemLines(Protocol):
    """Finished items, those of an earlier call included."""

    lines: dict[Key, Line]

    def add(self, line: Line) -> None:
        """Keep one more, at once."""


class _Lines:
    def __init__(self, lines: dict[Key, Line], file: Any = None) -> None:
        self.lines, self._file = lines, file

    def add(self, line: Line) -> None:
        self.lines[line["task"], line["doc_id"]] = line
        if self._file is not None:
            self._file.write(json_bytes(line))
            self._file.flush()


def fingerprint(*inputs: Any) -> str:
    """Inputs as a short text."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextmanager
def open_items(path: Path | None, expected: Mapping[Key, str], force: bool) -> Iterator[ItemLines]:
    """The finished items of a file, which grows with each `add`; at the end it is sorted. Without a path they are kept in memory.

    expected: the inputs of each item of this evaluation. Raises `UserError` where the file holds anything else, unless `force` replaces it.
    """
    if path is None:
        yield _Lines({})
        return
    lines = {} if force else read_items(path)
    for key, line in lines.items():
        if expected.get(key) != line.get("inputs"):
            raise UserError(
                f"{path} holds items of another model, other tasks or other settings; name another file with --items, or add --force to replace it"
            )
    with atomic_write(path) as file:  # without a line that a kill cut off
        file.writelines(map(json_bytes, lines.values()))
    with open(path, "ab") as file:
        items = _Lines(lines, file)
        yield items
    order = {key: place for place, key in enumerate(expected)}
    with atomic_write(path) as file:
        file.writelines(json_bytes(items.lines[key]) for key in sorted(items.lines, key=order.__getitem__))


def read_items(path: Path) -> dict[Key, Line]:
    """The lines of a file, none where there is no file. A last line that a kill cut off does not count."""
    if not path.exists():
        return {}
    if not path.is_file():
        raise UserError(f"--items {path} is no file; name a file that ends in .jsonl")
    lines: dict[Key, Line] = {}
    content = path.read_bytes().splitlines(keepends=True)
    for number, text in enumerate(content, start=1):
        line: Any = None
        with suppress(ValueError):
            line = json.loads(text)
        if _is_item(line):
            lines[line["task"], line["doc_id"]] = line
        elif number < len(content) or not _is_cut_off(text):
            raise UserError(
                f"{path}, line {number:,} is no item of a benchmark; name another file with --items, or add --force to replace it"
            )
    return lines


def _is_item(line: Any) -> bool:
    """Whether it is what an evaluation writes of an item."""
    return (
        isinstance(line, dict)
        and isinstance(line.get("task"), str)
        and type(line.get("doc_id")) is int
        and "inputs" in line
    )


def _is_cut_off(text: bytes) -> bool:
    """Whether a line is the beginning of an item's."""
    return not text.endswith(b"\n") and text[: len(_BEGINNING)] == _BEGINNING[: len(text)]


def check_results_file(path: Path | None, force: bool) -> None:
    """Raise `UserError` where a file stands in the way that is no result of ours; an earlier result is replaced."""
    if path is None or force or not path.exists():
        return
    with suppress(UserError):
        if path.is_file() and set(read_json(path)) == {"model", "tasks"}:
            return
    raise UserError(
        f"{path} is no earlier result of a benchmark; name another file with --json, or add --force to replace it"
    )


def write_results(path: Path, model: str, scores: Mapping[str, Mapping[str, float | None]]) -> None:
    """`{"model", "tasks": {name: {"acc", "acc_norm", "acc_stderr", "n"}}}`, rounded."""
    tasks = {
        task: {key: rounded(value) for key, value in of_task.items()} for task, of_task in scores.items()
    }
    write_json(path, {"model": model, "tasks": tasks})


def rounded(value: float | None) -> float | None:
    """Six digits after the point; counts stay integers."""
    return round(value, DIGITS) if isinstance(value, float) else value
