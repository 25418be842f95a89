"""Trainings that are killed end as if they had not been: at every write and rename of a stage, and by SIGKILL at random moments."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.end_to_end.conftest import environment
from tests.faults import prepare, result, run, start

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


# Level 3 writes its files with the same code, so a part of them is enough here.
@pytest.mark.parametrize(("level", "every"), [("v2", 1), ("v3", 3)])
def test_killed_at_every_write_and_rename_pretraining_ends_the_same(level: str, every: int) -> None:
    """The command does this with every stage. Here in a process of its own, without the shape checks of the tests."""
    words = ["-m", "tests.faults", "--level", level, "--stage", "pretrain", "--every", str(every)]
    done = subprocess.run([sys.executable, *words], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kills = int(done.stdout.split("each of ")[1].split()[0])
    assert kills >= 40 / every


@pytest.mark.parametrize(("level", "stage"), KILLED)
def test_sigkill_at_random_moments_changes_nothing(level: str, stage: str, tmp_path: Path) -> None:
    """In a new process, because `run` forks: the thread pools of earlier tests would be dead in the fork."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as new_process:
        new_process.submit(killed_and_finished, level, stage, tmp_path).result()


def killed_and_finished(level: str, stage: str, tmp_path: Path) -> None:
    words = [word for option in KILLED[level, stage] for word in ("--set", option)]
    model = [
        word for option in KILLED[level, stage] if option.startswith("model.") for word in ("--set", option)
    ]
    words += ["--set", f"{stage}.max_steps=20", "--set", f"{stage}.save_steps=3"]
    prepared, folder, output = tmp_path / "prepared", tmp_path / "run", tmp_path / "output.txt"
    prepare(level, stage, prepared, *model)
    start(prepared, folder)
    assert run(level, stage, folder, *words) == 0, output.read_text()
    expected = result(folder, stage)
    start(prepared, folder)
    moments, log = random.Random(2), folder / stage / "metrics_log.jsonl"
    for number in range(KILLS):
        step = moments.randint(5 * number + 1, 5 * number + 5)

        def at_step(_: Path, step: int = step) -> None:
            def wait() -> None:
                while not log.exists() or f'"step": {step},' not in log.read_text():
                    time.sleep(0.001)
                os.kill(os.getpid(), signal.SIGKILL)

            threading.Thread(target=wait, daemon=True).start()

        assert run(level, stage, folder, *words, trap=at_step) == -signal.SIGKILL
    assert run(level, stage, folder, *words) == 0, output.read_text()
    assert result(folder, stage) == expected
    assert not list(folder.rglob("*.tmp"))
