"""The metrics log: a killed and resumed run leaves the same bytes as one that was never killed."""

from pathlib import Path

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


def test_a_line_cut_off_by_the_kill_is_dropped(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "log.jsonl")
    train(log, 1, 3, speed=1.0)
    content = log.path.read_bytes()
    log.path.write_bytes(content[:-7])
    assert [row["step"] for row in log.rows()] == [1, 2]
    log.truncate_after(2)
    train(log, 3, 3, speed=1.0)
    assert log.path.read_bytes() == content


def test_a_run_that_starts_over_empties_its_log(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "log.jsonl")
    train(log, 0 + 1, 3, speed=1.0)
    log.truncate_after(-1)
    assert log.rows() == []
