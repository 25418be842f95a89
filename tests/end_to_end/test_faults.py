"""Trainings that are killed end as if they had not been: at every write and rename of a stage, and by SIGKILL at random moments."""

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.faults import LEVELS, prepare, result, run, sweep

# Dropout, Muon, adapters and the value model must go on, too; steps enough to be killed in the middle.
KILLED = {
    ("v2", "pretrain"): ["model.dropout=0.1"],
    ("v3", "pretrain"): ["model.dropout=0.1"],
    ("v2", "sft"): [
        "sft.adapter.method=qlora",
        "sft.adapter.bnb_4bit_blocksize=32",
        "sft.adapter.lora_dropout=0.1",
    ],
    ("v3", "reward"): ["reward.optim=muon"],
    ("v2", "ppo"): ["ppo.num_ppo_epochs=2"],
}
KILLS = 2  # of each


@pytest.mark.parametrize("level", LEVELS)
def test_killed_at_every_write_and_rename_pretraining_ends_the_same(level: str, tmp_path: Path) -> None:
    """`python -m tests.faults` does this with every stage."""
    (tmp_path / "prepared").mkdir()
    (tmp_path / "sweep").mkdir()
    prepare(level, "pretrain", tmp_path / "prepared" / "run")
    assert sweep(level, "pretrain", tmp_path / "prepared" / "run", tmp_path / "sweep") > 40


@pytest.mark.parametrize(("level", "stage"), KILLED)
def test_sigkill_at_random_moments_changes_nothing(level: str, stage: str, tmp_path: Path) -> None:
    words = [word for option in KILLED[level, stage] for word in ("--set", option)]
    words += ["--set", f"{stage}.max_steps=20", "--set", f"{stage}.save_steps=3"]
    before = [word for word in words if word.startswith("model.")]
    earlier = [word for option in before for word in ("--set", option)]
    whole, killed = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    for folder in (whole, killed):
        folder.parent.mkdir()
    prepare(level, stage, whole, *earlier)
    prepare(level, stage, killed, *earlier)
    assert run(level, stage, whole, *words) == 0, (whole.parent / "output.txt").read_text()
    moments = random.Random(2)
    for number in range(KILLS):
        log, step = killed / stage / "metrics_log.jsonl", moments.randint(5 * number + 1, 5 * number + 5)

        def at_step(folder: Path, log: Path = log, step: int = step) -> None:
            def wait() -> None:
                while not log.exists() or f'"step": {step},' not in log.read_text():
                    time.sleep(0.001)
                os.kill(os.getpid(), signal.SIGKILL)

            threading.Thread(target=wait, daemon=True).start()

        assert run(level, stage, killed, *words, trap=at_step) == -signal.SIGKILL
    assert run(level, stage, killed, *words) == 0, (killed.parent / "output.txt").read_text()
    assert result(killed, stage) == result(whole, stage)
    assert not list(killed.rglob("*.tmp"))
