"""Progress: plain lines in a log are few and complete; numbers and durations are short."""

import subprocess
import sys

import pytest

from shared_data import progress as module
from shared_data.progress import format_metric, format_number, format_seconds, progress


def test_without_a_terminal_a_line_comes_at_the_end_and_not_at_every_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress(total=1000, description="pretrain", done=200) as bar:
        for step in range(200, 1000):
            bar.update(1, loss=1000 / (step + 1), tokens_per_second=12_345.6)
    out, err = capsys.readouterr()
    assert err == ""
    assert len(out.splitlines()) == 1
    assert "pretrain 1,000/1,000 steps · loss 1.0000 · 12,346 tokens/s · " in out
    assert "left" in out


def test_lines_come_every_few_seconds_with_the_time_that_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with progress(total=100, description="data", unit="MB", done=40) as bar:
        for _ in range(30):
            clock[0] += 1
            bar.update(1)
    lines = capsys.readouterr().out.splitlines()
    # At the rate of this run, not counting what was done.
    assert lines[0] == "data 45/100 MB · 5.0 s elapsed, 55 s left"
    assert len(lines) == 6


def test_slow_work_reports_at_least_once_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with progress(total=1_000_000, description="pretrain") as bar:
        for _ in range(300):
            clock[0] += 1
            bar.update(1)
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_on_a_terminal_there_is_a_bar_and_printed_text_survives_it() -> None:
    code = (
        "import sys; sys.stdout.isatty = lambda: True\n"
        "from shared_data.progress import progress\n"
        "with progress(total=3, description='pretrain') as bar:\n"
        "    bar.update(2, loss=2.5); bar.print('sample [not markup]'); bar.update(1, loss=1.25)\n"
    )
    environment = {"TERM": "xterm", "FORCE_COLOR": "1", "COLUMNS": "120", "PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert "sample [not markup]" in done.stdout
    assert "3/3" in done.stdout
    assert "loss 1.25" in done.stdout


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (7.25, "7.2 s"), (41.6, "42 s"), (125, "2:05"), (3725, "1:02:05")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (12_345.6, "12,346"), (3.21678, "3.217"), (0.00031, "0.00031"), ("x", "x")]
)
def test_numbers_are_short(value: float | str, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("qa_accuracy", 0.68, "68.0%"),
        ("accuracy", 1, "100.0%"),
        ("finished_before", 1.0, "100.0%"),
        ("bits_per_byte", 0.25, "0.2500"),
        ("eval_loss", 2.0, "2.0000"),
        ("after", 1.0, "1.000"),
        ("objective/kl", -0.0123, "-0.012"),
        ("seconds", 125.0, "2:05"),
        ("tokens_per_second", 12_345.6, "12,346"),
        ("steps", 1100, "1,100"),
        ("learning_rate", 8.952e-09, "9e-09"),
    ],
)
def test_a_metric_has_the_same_decimals_whatever_its_value(name: str, value: float, text: str) -> None:
    assert format_metric(name, value) == text
