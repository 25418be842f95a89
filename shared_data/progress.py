"""Progress of long work: a live bar on a terminal, a plain line now and then in a log file.

from shared_data.progress import progress
with progress(total=600, description="pretrain") as bar:
    bar.update(1, loss=3.2, tokens_per_second=12_000)
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, Self

# Plain lines: not before five seconds, then after each hundredth of the work, and at least one a minute.
_SECONDS_BETWEEN_LINES = 5.0
_SHARE_BETWEEN_LINES = 0.01
_SECONDS_AT_MOST = 60.0


class Progress(Protocol):
    """What the work sees of its bar."""

    def update(self, amount: float = 1, **numbers: float | str) -> None:
        """Report `amount` more units done, and the latest numbers to show beside the bar."""

    def print(self, text: str) -> None:
        """Print a line (a sample of text, an evaluation) without tearing the bar."""


@contextmanager
def progress(
    total: float, description: str, unit: str = "steps", done: float = 0, show: bool = True
) -> Iterator[Progress]:
    """Show how far the work is, its numbers, the time it took and the time it still needs.

    `total` and `done` are in `unit`; `done` is what an earlier, interrupted run had finished. With `show=False`, nothing
    is printed.
    """
    kind = (_Bar if sys.stdout.isatty() else _Lines) if show else _Silent
    with kind(total, description, unit, done) as bar:
        yield bar


def format_number(value: float | str) -> str:
    """Short for people: 12,345 · 3.217 · 0.00031."""
    if isinstance(value, str):
        return value
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.2g}"


# Decimals by the end of a metric's name; the first that fits counts.
_FORMATS = (
    (("accuracy", "accuracy_before", "consistent_story_ratio", "distinct_word_ratio"), ".1%"),
    (("right_before", "right_after", "finished_before", "finished"), ".1%"),
    (("bits_per_byte", "bits_per_byte_before", "loss", "precision", "recall"), ".4f"),
    (("perplexity", "before", "after", "reward", "kl", "kl_per_completion"), ".3f"),
    (("learning_rate",), ".2g"),
)


def format_metric(name: str, value: float | str) -> str:
    """A number of a stage as it is written everywhere: losses with four decimals, rewards with three, shares as 68.0%."""
    if isinstance(value, str):
        return value
    if name == "seconds":
        return format_seconds(value)
    for endings, form in _FORMATS:
        if name.endswith(endings):
            return format(value, form)
    return format_number(value)


def format_seconds(seconds: float) -> str:
    """A duration: 7 s · 2:05 · 1:02:05."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _format_numbers(numbers: dict[str, float | str]) -> str:
    """The numbers beside the bar, as `loss 3.2170 · 12,345 tokens/s`."""
    parts = []
    for name, value in numbers.items():
        if name.endswith("_per_second"):
            rate = f"{value:,.0f}" if isinstance(value, float) and value >= 10 else format_number(value)
            parts.append(f"{rate} {name.removesuffix('_per_second').replace('_', ' ')}/s")
        else:
            parts.append(f"{name.replace('_', ' ')} {format_metric(name, value)}")
    return " · ".join(parts)


class _Bar:
    """A rich bar; rich is imported here because it takes a tenth of a second."""

    def __init__(self, total: float, description: str, unit: str, done: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._console = Console()
        self._rich = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]} " + unit),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
            console=self._console,
            refresh_per_second=5,
        )
        self._task = self._rich.add_task(description, total=total, numbers="", count="")
        self._done, self._total = done, total
        self._numbers: dict[str, float | str] = {}
        self._rich.update(self._task, completed=done)

    def __enter__(self) -> Self:
        self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rich.stop()

    def update(self, amount: float = 1, **numbers: float | str) -> None:
        self._numbers.update(numbers)
        self._done += amount
        count = f"{format_number(self._done)}/{format_number(self._total)}"
        self._rich.update(
            self._task, completed=self._done, count=count, numbers=_format_numbers(self._numbers)
        )

    def print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)


class _Lines:
    """A line now and then, for logs."""

    def __init__(self, total: float, description: str, unit: str, done: float) -> None:
        self._total, self._description, self._unit = total, description, unit
        self._done = self._first = self._last_printed = done
        self._started = self._last_time = time.monotonic()
        self._numbers: dict[str, float | str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def update(self, amount: float = 1, **numbers: float | str) -> None:
        self._done += amount
        self._numbers.update(numbers)
        now = time.monotonic()
        waited = now - self._last_time
        advanced = self._done - self._last_printed >= _SHARE_BETWEEN_LINES * self._total
        due = waited >= _SECONDS_AT_MOST or (waited >= _SECONDS_BETWEEN_LINES and advanced)
        if due or self._done >= self._total > self._last_printed:
            self._last_time, self._last_printed = now, self._done
            self.print(self._line(now - self._started))

    def _line(self, elapsed: float) -> str:
        """`pretrain 120/600 steps · loss 3.2 · 41 s elapsed, 2:44 left`."""
        rate = (self._done - self._first) / elapsed if elapsed > 0 else 0.0
        remaining = (self._total - self._done) / rate if rate > 0 else 0.0
        parts = [f"{self._description} {format_number(self._done)}/{format_number(self._total)} {self._unit}"]
        if self._numbers:
            parts.append(_format_numbers(self._numbers))
        parts.append(f"{format_seconds(elapsed)} elapsed, {format_seconds(max(remaining, 0))} left")
        return " · ".join(parts)

    def print(self, text: str) -> None:
        print(text, flush=True)


class _Silent(_Lines):
    """Nothing, for a caller that shows nothing."""

    def print(self, text: str) -> None:
        pass
