"""The story of a run as one HTML page."""

from collections.abc import Sequence
from pathlib import Path

from shared_data.files import atomic_write
from shared_data.runs import RunFolder


def write_report(run: RunFolder, compare: Sequence[str] = ()) -> Path:
    """Write `report.html` into the run folder and return its path."""
    path = run.path / "report.html"
    with atomic_write(path, "w") as file:
        file.write("<!doctype html><title>run</title>")
    return path
