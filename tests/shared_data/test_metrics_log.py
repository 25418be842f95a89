"""The metrics log: a killed and resumed run leaves the same bytes as one that was never killed."""

import builtins
import errno
from pathlib import Path
from typing import Any

import pytest

from shared_data.errors import UserError
from shared_data.metrics_log import MetricsLog


def train(log: MetricsLog, first: int, last: int, speed: float) -> None:
    for step in range(first, last + 1):
        log.append(
            step=step, loss=1 / step, sample="naïve ☃\n", tokens_per_second=speed, seconds_forward=speed
        )


def test_rows_come_back_and_the_clock_is_kept_apart(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "log" / "metrics_log.jsonl")
    assert log.rows() == []
    log.append(step=1, loss=2.5, tokens_per_second=100.0)
    assert log.rows() == [{"step": 1, "loss": 2.5}]
    assert log.timings() == [{"step": 1, "tokens_per_second": 100.0}]


def test_resumed_log_equals_uninterrupted_log(tmp_path: Path) -> None:
    whole, resumed = MetricsLog(tmp_path / "a" / "log.jsonl"), MetricsLog(tmp_path / "b" / "log.jsonl")
    train(whole, 1, 20, speed=1.0)
    train(resumed, 1, 13, speed=1.0)  # killed at step 13; its last checkpoint was at step 10
    resumed.truncate_after(10)
    train(resumed, 11, 20, speed=2.0)
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    assert resumed.path.read_bytes().count(b"\n") == 20


@pytest.mark.parametrize(
    "line",
    [
        *(b'{"step": 2, "los', b"[1]", b"\xff", b'{"loss": 1}', b"", b'{"step": null}', b'{"step": "2"}'),
        *(b'{"step": 2, "loss": "x"}', b'{"step": 2, "loss": null}', b'{"step": 2, "loss": NaN}'),
        *(
            b'{"step": 2, "loss": 1e999}',
            b'{"step": 2, "sample": 5}',
            b'{"step": 2, "loss": 1' + b"0" * 400 + b"}",
        ),
    ],
)
def test_a_resume_drops_a_broken_line_and_what_follows_it(
    tmp_path: Path, line: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    log = MetricsLog(tmp_path / "log.jsonl")
    train(log, 1, 3, speed=1.0)
    whole = log.path.read_bytes()
    first, _, third, _ = whole.split(b"\n")
    log.path.write_bytes(first + b"\n" + line + b"\n" + third + b"\n")
    assert [row["step"] for row in log.rows()] == [row["step"] for row in log.rows()] == [1]
    message = f"{log.path}: line 2 is damaged; it and what follows it are left out."
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.count("\n") == 1, "said once"
    log.truncate_after(3)
    assert capsys.readouterr().out == f"{log.path}: line 2 is damaged; it and what follows it are dropped\n"
    train(log, 2, 3, speed=1.0)
    assert log.path.read_bytes() == whole


def test_a_line_cut_off_by_the_kill_is_dropped_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = MetricsLog(tmp_path / "log.jsonl")
    train(log, 1, 3, speed=1.0)
    content = log.path.read_bytes()
    log.path.write_bytes(content[:-7])
    log.truncate_after(2)
    train(log, 3, 3, speed=1.0)
    assert log.path.read_bytes() == content
    assert capsys.readouterr().out == ""


class ShortWrites:
    """A file that takes a few bytes at a time, and at last none."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def __enter__(self) -> "ShortWrites":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.file.write(data[: min(self.room, 5)])
        self.room -= written
        return written


def test_a_short_write_leaves_a_whole_line_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path / "log.jsonl")
    train(log, 1, 1, speed=1.0)
    before, opened = log.path.read_bytes(), open
    monkeypatch.setattr(builtins, "open", lambda *a, **k: ShortWrites(opened(*a, **k), room=20))
    with pytest.raises(UserError, match=r"log.jsonl: No space left on device; free"):
        log.append(step=2, loss=0.123456789)
    assert log.path.read_bytes() == before
    monkeypatch.setattr(builtins, "open", lambda *a, **k: ShortWrites(opened(*a, **k), room=10_000))
    log.append(step=2, loss=0.123456789)
    assert [row["step"] for row in log.rows()] == [1, 2]


def test_a_run_that_starts_over_empties_its_log(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "log.jsonl")
    train(log, 0 + 1, 3, speed=1.0)
    log.truncate_after(-1)
    assert log.rows() == []
