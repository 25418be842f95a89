"""What a comparison found: numbers of each choice, as a table for the terminal and for compare.md, as compare.json, as a plot.

rows = [row_of(trials_of_a_choice, bytes_per_token, failures)]
write_comparison(rows, Path("runs/v2/tiny/compare"), title="tiny", command="uv run v2 compare …")
"""

import statistics
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_data.comparison.choices import TRAINED, Choice
from shared_data.comparison.trials import Trial
from shared_data.files import atomic_write, read_json, write_json
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.size import count_active_parameters, count_parameters
from shared_data.plots import plot_panels
from shared_data.settings import parse_override

TABLE, NUMBERS, PLOT = "compare.md", "compare.json", "compare.svg"
ABOVE_FLOOR = "bits_per_byte_above_floor"
# Columns: metric, heading, format. The second is shown where the text has no known floor.
_COLUMNS = (
    (ABOVE_FLOOR, "bits per byte above the floor", ".4f"),
    ("bits_per_byte", "bits per byte", ".4f"),
    ("tokens_per_second", "tokens/s", ",.0f"),
    ("parameters", "parameters", ",.0f"),
    ("active_parameters", "active parameters", ",.0f"),
    ("cache_bytes_per_token", "cache bytes per token", ",.0f"),
)
_KEPT = (
    "bits_per_byte",
    "floor_bits_per_byte",
    "perplexity",
    "loss",
    "steps",
    "tokens",
    "tokens_per_second",
    "seconds",
)

BytesPerToken = Callable[[ModelConfig], int]


@dataclass(frozen=True)
class Row:
    """A choice and what its trainings came to."""

    choice: Choice
    results: list[dict[str, Any]]  # of each seed that is trained: `folder`, `seed`, numbers
    missing: int  # trainings that have not finished
    error: str | None = None  # why the first that failed did

    def mean(self, name: str) -> float | None:
        """The mean of a number over the seeds; None where there is none."""
        values = self._values(name)
        return statistics.fmean(values) if values else None

    def spread(self, name: str) -> float | None:
        """Its standard deviation over the seeds, estimated with n - 1; None below two seeds."""
        values = self._values(name)
        return statistics.stdev(values) if len(values) > 1 else None

    def _values(self, name: str) -> list[float]:
        return [result[name] for result in self.results if name in result]


def rows_of(trials: Sequence[Trial], bytes_per_token: BytesPerToken, failures: dict[str, str]) -> list[Row]:
    """A row for each choice, in order.

    bytes_per_token: memory that one token takes in the cache of the level.  failures: messages by the name of the trial.
    """
    rows = []
    for choice in dict.fromkeys(trial.choice for trial in trials):
        own = [trial for trial in trials if trial.choice == choice]
        finished = [trial for trial in own if trial.is_finished]
        errors = [failures[trial.name] for trial in own if trial.name in failures]
        results = [_result(trial, bytes_per_token) for trial in finished]
        rows.append(Row(choice, results, len(own) - len(finished), errors[0] if errors else None))
    return rows


def _result(trial: Trial, bytes_per_token: BytesPerToken) -> dict[str, Any]:
    """The numbers of one training; sizes are those of the model in its folder."""
    metrics = trial.run.metrics()[TRAINED]
    config = ModelConfig.from_hf(read_json(trial.run.model() / "config.json"))
    numbers = {name: metrics[name] for name in _KEPT if name in metrics}
    if "floor_bits_per_byte" in metrics:
        numbers[ABOVE_FLOOR] = metrics["bits_per_byte"] - metrics["floor_bits_per_byte"]
    numbers |= {
        "parameters": count_parameters(config),
        "active_parameters": count_active_parameters(config),
        "cache_bytes_per_token": bytes_per_token(config),
    }
    return {"folder": trial.run.path.name, "seed": trial.run.settings.pretrain.seed, **numbers}


def write_comparison(rows: Sequence[Row], root: Path, title: str, command: str) -> None:
    """Write the table, the numbers and the plot into the folder of the comparison.

    title: of the page, the name of the configuration.  command: what makes it again.
    """
    choices = []
    for row in rows:
        settings = {".".join(keys): value for keys, value in map(parse_override, row.choice.assignments)}
        entry = {"name": row.choice.name, "settings": settings, "missing": row.missing, "runs": row.results}
        choices.append(entry if row.error is None else entry | {"error": row.error})
    write_json(root / NUMBERS, {"config": title, "command": command, "choices": choices})
    head, *body = table(rows)
    marks = ["---", *["---:" for _ in head[1:]]]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, marks, *body)]
    page = [f"# Comparison: {title}", f"```console\n{command}\n```", "\n".join(lines)]
    page += [f"- {note}" for note in notes(rows)]
    finished = [row for row in rows if row.results]
    if finished:
        panels = {
            heading: [(row.mean(name), row.spread(name), _cell(row, name, form)) for row in finished]
            for name, heading, form in _columns(finished)
        }
        plot_panels([row.choice.name for row in finished], panels, root / PLOT)
        page.append(f"![{', '.join(panels)} of each choice]({PLOT})")
    with atomic_write(root / TABLE, "w") as file:
        file.write("\n\n".join(page) + "\n")


def table(rows: Sequence[Row]) -> list[list[str]]:
    """The heading and a line for each choice."""
    columns = _columns(rows)
    lines = [[row.choice.name, *(_cell(row, name, form) for name, _, form in columns)] for row in rows]
    return [["", *(heading for _, heading, _ in columns)], *lines]


def print_table(rows: Sequence[Row]) -> None:
    """The table in aligned columns, and what to keep in mind when reading it."""
    lines = table(rows)
    halves = [["", "", *textwrap.wrap(heading, 16)][-2:] for heading in lines[0]]  # narrow columns
    lines = [*map(list, zip(*halves, strict=True)), *lines[1:]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print()
    for name, *cells in lines:
        aligned = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        print("   " + "  ".join((name.ljust(widths[0]), *aligned)))
    print()
    for note in notes(rows):
        print(f"   {note}")


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader of the numbers must know, and cannot see in them."""
    said = [f"{row.choice.name} failed: {row.error}" for row in rows if row.error]
    missing, total = sum(row.missing for row in rows), sum(row.missing + len(row.results) for row in rows)
    if missing:
        said.append(f"{total - missing} of {total} trainings have finished.")
    for name, what in (
        ("tokens", "were trained on different numbers of tokens"),
        ("floor_bits_per_byte", "have different texts, with different floors"),
    ):
        if len({result.get(name) for row in rows for result in row.results}) > 1:
            said.append(f"The choices {what}: a lower number is not all due to the choice.")
    seeds = {len(row.results) for row in rows}
    if max(seeds, default=0) > 1:
        said.append("± is the standard deviation between seeds.")
    elif total > missing:
        said.append(
            "One seed each: a small difference may be chance; --seeds 0,1,2 shows how large chance is."
        )
    return said


def _columns(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """The columns of a table: bits per byte above the floor, and without a floor themselves."""
    has_floor = any(row.mean(ABOVE_FLOOR) is not None for row in rows)
    return [column for column in _COLUMNS if column[0] != ("bits_per_byte" if has_floor else ABOVE_FLOOR)]


def _cell(row: Row, name: str, form: str) -> str:
    """A mean and, of several seeds that differ, its spread; a dash where there is none."""
    mean, spread = row.mean(name), row.spread(name)
    if mean is None:
        return "–"
    return format(mean, form) + (f" ± {format(spread, form)}" if spread else "")
