"""All targets of speed, each measured with both sides in one run: a table, and `runs/benchmarks.json`.

These machines are noisy, so what counts is the ratio, not the seconds.

    uv run python -m tests.benchmarks                 everything (about ten minutes on two cores)
    uv run python -m tests.benchmarks stages     one subject, or several
    uv run python -m tests.benchmarks bpe --text FILE…  natural text of yours for the tokenizer
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]


def command_line() -> Iterator[Row]:
    """Seconds until `v2 --help` has answered: the median of five, a process each."""
    command = [sys.executable, "-m", "v2_handwritten.cli", "--help"]
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    yield {"what": "`v2 --help`, seconds", "ratio": statistics.median(seconds), "target": "< 1"}


def rows_of(module: str) -> Callable[..., Iterator[Row]]:
    """The rows that `tests/benchmarks/<module>.py` measures; imported only when it is its turn."""

    def measure() -> Iterator[Row]:
        for row in importlib.import_module(f"tests.benchmarks.{module}").run():
            target = row.get("target", "")
            yield {**row, "target": f"≥ {target}" if isinstance(target, float) else target}

    return measure


def tokenizer(texts: list[Path]) -> Iterator[Row]:
    """BPE on stories and on natural text: Python's own documentation and sources, or the user's files."""
    yield from importlib.import_module("tests.benchmarks.bpe").measure(texts or None)


SUBJECTS: dict[str, Callable[..., Iterator[Row]]] = {
    "command_line": command_line,
    "kernels": rows_of("kernels"),
    "mixture_of_experts": rows_of("mixture_of_experts"),
    "attention_patterns": rows_of("attention_patterns"),
    "training_step": rows_of("training_step"),
    "stages": rows_of("stages"),
    "numpy_step": rows_of("numpy_step"),
    "generation": rows_of("generation"),
    "decoding": rows_of("decoding"),
    "benchmark_harness": rows_of("benchmark_harness"),
    "bpe": tokenizer,
}


def main() -> None:
    """Measure, print as it goes, and keep the rows."""
    parser = argparse.ArgumentParser(description="Ratios of speed between the levels and their peers.")
    parser.add_argument(
        "subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)}; default all"
    )
    parser.add_argument("--text", nargs="*", type=Path, default=[], help="natural text for the tokenizer")
    arguments = parser.parse_args()
    unknown = set(arguments.subjects) - set(SUBJECTS)
    if unknown:
        parser.error(f"no subject {', '.join(sorted(unknown))}; there are {', '.join(SUBJECTS)}")
    os.environ["HF_HUB_OFFLINE"] = "1"

    console = Console()
    rows: list[Row] = []
    for subject in arguments.subjects or SUBJECTS:
        measure = SUBJECTS[subject]
        for row in measure(arguments.text) if subject == "bpe" else measure():
            rows.append({"subject": subject, **row})
            console.print(f"{row['ratio']:8.2f}  {row.get('target', ''):8}  {row['what']}", highlight=False)

    table = Table(title="measured, both sides in one run")
    for heading in ("what", "measured", "target"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for row in rows:
        table.add_row(row["what"], f"{row['ratio']:.2f}", str(row.get("target", "")))
    console.print(table)
    path = Path("runs") / "benchmarks.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
