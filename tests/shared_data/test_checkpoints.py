"""Checkpoints: whole or not there at any moment of a kill, the newest kept, the damaged named."""

import json
import os
import resource
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from shared_data.errors import UserError
from shared_data.training import checkpoints
from shared_data.training.checkpoints import TrainingState, newest_checkpoints, save_checkpoint

FILES = {"model.safetensors", "optimizer.safetensors", "training_state.json"}


def save(folder: Path, step: int, keep: int = 2, fingerprint: str = "abc", size: int = 1) -> Path:
    def write(inside: Path) -> None:
        for name in ("model.safetensors", "optimizer.safetensors"):
            (inside / name).write_bytes(bytes([step]) * size)

    return save_checkpoint(folder, TrainingState(step=step), write, fingerprint=fingerprint, keep=keep)


def test_the_newest_checkpoints_of_the_same_inputs_are_found(tmp_path: Path) -> None:
    for step in (1, 2, 10, 9):
        save(tmp_path, step, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000009", "step-000010"]
    assert [state.step for _, state in newest_checkpoints(tmp_path, "abc")] == [10, 9, 2]
    assert list(newest_checkpoints(tmp_path, "other settings")) == []
    assert {file.name for file in (tmp_path / "step-000010").iterdir()} == FILES
    checkpoints.clear_checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())


def test_killed_between_any_two_changes_the_newest_checkpoint_is_whole(tmp_path: Path) -> None:
    kills, seen = 0, set()
    while True:
        checkpoints.clear_checkpoints(tmp_path)
        save(tmp_path, 1, keep=1)
        child = os.fork()
        if child == 0:
            save_and_die_before_change(tmp_path, kills)
        _, status = os.waitpid(child, 0)
        (newest, state), *_ = newest_checkpoints(tmp_path, "abc")
        assert isinstance(state, TrainingState)
        assert {file.name for file in newest.iterdir()} == FILES
        assert (newest / "model.safetensors").read_bytes() == bytes([state.step])
        seen.add(state.step)
        if not os.WIFSIGNALED(status):
            break
        kills += 1
    assert os.WEXITSTATUS(status) == 0
    assert seen == {1, 2}
    assert kills > 10, "the kills must fall between the files of a checkpoint, too"
    checkpoints.clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]


def save_and_die_before_change(folder: Path, number: int) -> None:
    """Save in this forked process, which is killed before so many changes in the folder were made; never returns."""
    left = number

    def watch(event: str, arguments: Any) -> None:
        nonlocal left
        changes = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")
        if event in changes and str(folder) in str(arguments[0]):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    try:
        sys.addaudithook(watch)  # Python calls it before each such change
        save(folder, 2, keep=1)
        os._exit(0)
    except BaseException:
        os._exit(1)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        "null",
        '{"step": 2}',
        json.dumps({"fingerprint": "abc"} | asdict(TrainingState(step="2"))),  # type: ignore[arg-type]
        json.dumps({"fingerprint": "abc"} | asdict(TrainingState(seconds=float("nan")))),
    ],
)
def test_a_damaged_training_state_is_named_and_the_one_before_found(content: str, tmp_path: Path) -> None:
    for step in (1, 2):
        path = save(tmp_path, step) / "training_state.json"
    path.write_text(content)
    (_, error), (_, state) = newest_checkpoints(tmp_path, "abc")
    assert isinstance(error, UserError)
    assert str(path) in str(error)
    assert isinstance(state, TrainingState)
    assert state.step == 1


def test_a_full_disk_is_a_user_error_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # longer files fail, as on a full disk
    try:
        with pytest.raises(UserError, match="--out"):
            save(tmp_path, 2, size=3000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
