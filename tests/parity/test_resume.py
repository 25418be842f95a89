"""Interrupted, damaged, continued: every stage of levels 2 and 3 ends as if it had been left alone, bit for bit."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared_data.errors import UserError
from shared_data.metrics_log import MetricsLog
from tests.parity.recorder import ParityRecorder
from tests.parity.stage_cases import StageRun, prepare
from tests.parity.training_cases import LEVELS

# Dropout, adapters, Muon and the value model of PPO must go on where they were, too.
CASES: dict[str, list[str]] = {
    "pretrain": ["model.dropout=0.1"],
    "pretrain, float16": ["fp16=true"],
    "sft": ["optim=muon"],
    "sft, adapters": ['adapter.method="lora"', "adapter.r=2", "adapter.lora_dropout=0.2"],
    "reward": [],
    "dpo": [],
    "ppo": [],
    "grpo": [],
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared") / "run")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("level", LEVELS)
def test_a_stage_continued_from_a_checkpoint_ends_with_the_same_bits(
    level: str, case: str, prepared: Path, tmp_path: Path
) -> None:
    if level == "v3" and "float16" in case:
        pytest.skip("NumPy multiplies matrices in 32 bits only")
    overrides = [*CASES[case], "max_steps=2"]
    stage = StageRun(level, case.split(",")[0], prepared, tmp_path / "run", *overrides)
    metrics, whole = stage(), stage.result
    assert len(whole) == {"ppo": 5, "sft, adapters": 5}.get(case, 4)
    shutil.rmtree(stage.checkpoints[-1])
    assert stage() == metrics
    assert stage.result == whole


@pytest.mark.parametrize(("first", "second"), [LEVELS, LEVELS[::-1]])
def test_one_hand_written_level_continues_the_run_of_the_other(
    first: str, second: str, prepared: Path, tmp_path: Path, parity: ParityRecorder
) -> None:
    whole = StageRun(first, "sft", prepared, tmp_path / "whole")
    whole()
    begun = StageRun(first, "sft", prepared, tmp_path / "begun")
    begun()
    shutil.rmtree(begun.checkpoints[-1])
    begun.level = second
    begun()
    assert len(begun.rows) == 3
    parity(
        component="training state", quantity=f"weights, {first} continued by {second}", levels="v2-v3",
        actual=begun.weights(), expected=whole.weights(), tolerance=1e-7,
    )  # fmt: skip


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("stage", ["pretrain", "grpo"])
@pytest.mark.parametrize("level", LEVELS)
def test_ctrl_c_in_any_step_is_continued_to_the_same_weights(
    level: str, stage: str, step: int, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = (StageRun(level, stage, prepared, tmp_path / name) for name in ("whole", "parts"))
    whole()
    append = MetricsLog.append

    def interrupt(self: MetricsLog, *, step: int, **values: Any) -> None:
        append(self, step=step, **values)
        if step == number:
            os.kill(os.getpid(), signal.SIGINT)

    number = step
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "append", interrupt)
        with pytest.raises(KeyboardInterrupt):
            parts()
    assert [row["step"] for row in parts.rows] == list(range(1, step + 1))
    parts()
    assert parts.result == whole.result


def truncate(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:100])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights cut short": truncate("model.safetensors"),
    "optimizer cut short": truncate("optimizer.safetensors"),
    "no optimizer": lambda folder: (folder / "optimizer.safetensors").unlink(),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "state a list": lambda folder: (folder / "training_state.json").write_text("[]"),
    "state no JSON": lambda folder: (folder / "training_state.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("level", LEVELS)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    level: str, damage: str, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = StageRun(level, "reward", prepared, tmp_path / "run")
    stage()
    whole = stage.result
    DAMAGES[damage](stage.checkpoints[-1])
    stage()
    assert stage.result == whole
    assert f"{stage.checkpoints[-1]} cannot be read" in capsys.readouterr().out
    for checkpoint in stage.checkpoints:
        DAMAGES[damage](checkpoint)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read; start over with --force"):
        stage()
