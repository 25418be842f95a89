"""The log of a training run: one JSON object a line, the same whether or not the run was killed on the way.

What depends only on the settings (loss, learning rate, gradient norm) goes to `metrics_log.jsonl`. What depends on the
clock (keys that begin with `seconds` or `tokens_per_second`) goes to `timings.jsonl` beside it. So the first file of a run
that was killed and resumed equals, byte for byte, that of a run that never was: `truncate_after` drops the rows that the
killed run wrote after its last checkpoint, and they are written again.

    uv run python -c "from shared_data.metrics_log import MetricsLog as M; print(M('runs/v2/tiny/pretrain/metrics_log.jsonl').rows())"
"""

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

from shared_data.errors import explain_os_error
from shared_data.files import atomic_write, is_number, json_bytes, parse_json

_CLOCK_KEYS = ("seconds", "tokens_per_second")


class MetricsLog:
    """Rows of numbers (and samples of text) by training step, appended to a file as training goes."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.timings_path = self.path.with_name("timings.jsonl")

    def append(self, *, step: int, **values: Any) -> None:
        """Add a row; values that depend on the clock go to the timings."""
        clock = {key: value for key, value in values.items() if key.startswith(_CLOCK_KEYS)}
        steady = {key: value for key, value in values.items() if key not in clock}
        if steady:
            _append_line(self.path, {"step": step, **steady})
        if clock:
            _append_line(self.timings_path, {"step": step, **clock})

    def rows(self) -> list[dict[str, Any]]:
        """All rows, the oldest first; no rows where there is no log. Those from a damaged line on are left out, with a message."""
        return _read_whole_lines(self.path)

    def timings(self) -> list[dict[str, Any]]:
        """All rows that depend on the clock."""
        return _read_whole_lines(self.timings_path)

    def truncate_after(self, step: int) -> None:
        """Forget everything after a step: the run continues from its checkpoint. A negative step empties the log.

        A damaged line is dropped with all that follows it, with a message.
        """
        for path in (self.path, self.timings_path):
            rows, damaged = _read_lines(path)
            if damaged and step >= 0:
                print(f"{path}: line {damaged} is damaged; it and what follows it are dropped", flush=True)
            if path.exists():
                with atomic_write(path) as file:
                    file.writelines(json_bytes(row) for row in rows if row["step"] <= step)


def _append_line(path: Path, row: dict[str, Any]) -> None:
    """Add one line: all of it, or nothing where the disk is full. A killed run leaves at most its last line incomplete."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            size, line = file.seek(0, os.SEEK_END), json_bytes(row)
            try:
                while line:
                    line = line[file.write(line) :]  # a write may take less than it was given
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise explain_os_error(error, path) or error from error


def _read_whole_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file up to a damaged line, which is named."""
    rows, damaged = _read_lines(path)
    if damaged:
        _say_once(
            f"{path}: line {damaged} is damaged; it and what follows it are left out. To log them anew, run the stage with --force"
        )
    return rows


@cache
def _say_once(message: str) -> None:
    """A report reads a log more than once."""
    print(message, file=sys.stderr, flush=True)


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int | None]:
    """The rows of a file up to the first line that is none, and that line's number.

    An incomplete last line (the run was killed while it wrote) counts as not written.
    """
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
        except (ValueError, RecursionError):
            return rows, number
        if not _is_row(row):
            return rows, number
        rows.append(row)
    return rows, None


def _is_row(row: Any) -> bool:
    """Whether a value is an object of numbers with its step; a sample alone is text."""
    return (
        isinstance(row, dict)
        and type(row.get("step")) is int
        and all(
            isinstance(value, str) if name == "sample" else is_number(value) for name, value in row.items()
        )
    )
