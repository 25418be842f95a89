"""Checkpoints: whole or not there at any moment of a kill, continued by any hand-written level, free of pickles."""

import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared_data.errors import UserError
from tests.parity.recorder import ParityRecorder, as_array

LEVELS = ("v1_quick", "v2_handwritten", "v3_numpy_deep")
HAND_WRITTEN = LEVELS[1:]
SIZES: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


class Run:
    """A small model with an optimizer, trained a little by made-up gradients."""

    def __init__(self, level: str, folder: Path, seed: int = 0) -> None:
        self.level = level
        self.modules = {
            name: importlib.import_module(f"{level}.{name}")
            for name in (
                "models.config",
                "models.transformer",
                "models.checkpoint",
                "pretrain.components.optimizers",
                "pretrain.components.training_state",
            )
        }
        self.states = self.modules["pretrain.components.training_state"]
        self.folder, self.seed = folder, seed
        config = self.modules["models.config"].ModelConfig.from_hf({"model_type": "llama", **SIZES})
        self.model = self.modules["models.transformer"].Transformer(config).initialize(seed)
        self._make_optimizer()
        self.state = self.states.TrainingState()

    def _make_optimizer(self) -> None:
        self.parameters = list(getattr(self.model, "library", self.model).parameters())
        optimizers = self.modules["pretrain.components.optimizers"]
        groups = optimizers.parameter_groups(getattr(self.model, "library", self.model), 0.1)
        self.optimizer = optimizers.AdamW(groups, 1e-2)

    def step(self) -> None:
        for i, parameter in enumerate(self.parameters):
            shape = tuple(parameter.shape)
            gradient = np.random.default_rng([self.state.step, i]).standard_normal(shape, dtype=np.float32)
            parameter.grad = gradient if self.level == "v3_numpy_deep" else torch.from_numpy(gradient)
        self.optimizer.step()
        self.state.step += 1
        self.state.loader = {"epoch": 0, "position": self.state.step}

    def save(self, keep: int = 2, fingerprint: str = "abc") -> Path:
        return self.states.save_training_state(
            self.folder, self.state, self._write, self.optimizer, fingerprint=fingerprint, keep=keep
        )

    def _write(self, folder: Path) -> None:
        self.modules["models.checkpoint"].save_model(self.model, folder)

    def newest(self, fingerprint: str = "abc") -> Path | None:
        return self.states.newest_training_state(self.folder, fingerprint)

    def resume(self) -> "Run":
        """A new process's view: model, optimizer and state from the newest checkpoint."""
        checkpoint = self.newest()
        assert checkpoint is not None
        resumed = Run(self.level, self.folder, seed=99)
        resumed.model = self.modules["models.checkpoint"].load_model(checkpoint)
        resumed._make_optimizer()
        resumed.state = self.states.load_training_state(checkpoint, resumed.optimizer)
        return resumed

    def weights(self) -> np.ndarray:
        return np.concatenate([as_array(parameter).ravel() for parameter in self.parameters])


@pytest.mark.parametrize("level", LEVELS)
def test_a_resumed_run_takes_the_same_steps_bit_for_bit(level: str, tmp_path: Path) -> None:
    run = Run(level, tmp_path)
    for _ in range(3):
        run.step()
    run.save()
    resumed = run.resume()
    assert resumed.state == run.state
    for _ in range(3):
        run.step()
        resumed.step()
    np.testing.assert_array_equal(resumed.weights(), run.weights())


@pytest.mark.parametrize(("writer", "reader"), [HAND_WRITTEN, HAND_WRITTEN[::-1]])
def test_one_hand_written_level_continues_the_run_of_the_other(
    writer: str, reader: str, tmp_path: Path, parity: ParityRecorder
) -> None:
    first = Run(writer, tmp_path)
    first.step()
    first.save()
    other = Run(reader, tmp_path).resume()
    for _ in range(5):
        first.step()
        other.step()
    expected = dict(zip(names(first), first.parameters, strict=True))
    actual = dict(zip(names(other), other.parameters, strict=True))
    assert expected.keys() == actual.keys()
    parity(
        component="training state",
        quantity=f"weights, {writer[:2]} continued by {reader[:2]}",
        levels="v2-v3",
        actual=np.concatenate([as_array(actual[name]).ravel() for name in sorted(actual)]),
        expected=np.concatenate([as_array(expected[name]).ravel() for name in sorted(actual)]),
        tolerance=1e-7,
    )


def names(run: Run) -> list[str]:
    return [name for name, _ in run.model.named_parameters()]


@pytest.mark.parametrize("level", HAND_WRITTEN)
def test_killed_between_any_two_changes_on_disk_the_newest_checkpoint_is_whole(
    level: str, tmp_path: Path
) -> None:
    run = Run(level, tmp_path)
    run.step()
    whole = {path.name for path in run.save(keep=1).iterdir()}
    before = run.weights().copy()
    run.step()
    after, kills, seen = run.weights().copy(), 0, set()
    while True:
        child = os.fork()
        if child == 0:
            save_and_die_before_change(run, kills)
        _, status = os.waitpid(child, 0)
        assert run.newest() is not None, f"killed before change {kills}: no checkpoint is left"
        for checkpoint in tmp_path.glob("step-*"):
            held = {path.name for path in checkpoint.iterdir()}
            assert held >= whole, f"killed before change {kills}: {checkpoint.name} is not whole"
        resumed = run.resume()
        seen.add(resumed.state.step)
        np.testing.assert_array_equal(resumed.weights(), after if resumed.state.step == 2 else before)
        if not os.WIFSIGNALED(status):
            break
        kills += 1
        if resumed.state.step == 2:  # put the old one back for the next kill
            restore_first_checkpoint(run)
    assert os.WEXITSTATUS(status) == 0
    assert seen == {1, 2}
    assert kills > 20, "the kills must fall between the files of a checkpoint too"
    run.states.clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]


def save_and_die_before_change(run: Run, number: int) -> None:
    """Save in this forked process, and be killed before so many changes in the folder were made; never returns."""
    left = number
    folder = str(run.folder)

    def watch(event: str, arguments: Any) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and folder in str(
            arguments[0]
        ):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    try:
        sys.addaudithook(watch)  # Python tells it before each such call
        run.save(keep=1)
        os._exit(0)
    except BaseException:
        os._exit(1)


def restore_first_checkpoint(run: Run) -> None:
    """Step 1 saved again, step 2 gone."""
    run.states.clear_training_states(run.folder)
    again = Run(run.level, run.folder)
    again.step()
    again.save(keep=1)


@pytest.mark.parametrize("level", LEVELS)
def test_the_newest_checkpoints_of_the_same_settings_are_kept(level: str, tmp_path: Path) -> None:
    run = Run(level, tmp_path)
    for _ in range(4):
        run.step()
        run.save(keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003", "step-000004"]
    assert run.newest("abc") == tmp_path / "step-000004"
    assert run.newest("other settings") is None
    run.states.clear_training_states(tmp_path)
    assert run.newest("abc") is None


@pytest.mark.parametrize("level", LEVELS)
def test_a_checkpoint_holds_json_and_safetensors_only(level: str, tmp_path: Path) -> None:
    run = Run(level, tmp_path)
    run.step()
    checkpoint = run.save()
    files = {path.name for path in checkpoint.iterdir()}
    assert {"config.json", "model.safetensors", "optimizer.safetensors", "training_state.json"} <= files
    assert all(name.endswith((".json", ".safetensors")) for name in files)
    assert json.loads((checkpoint / "training_state.json").read_text())["step"] == 1


@pytest.mark.parametrize("level", LEVELS)
def test_a_damaged_checkpoint_is_a_user_error(level: str, tmp_path: Path) -> None:
    run = Run(level, tmp_path)
    run.step()
    checkpoint = run.save()
    path = checkpoint / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        run.resume()


@pytest.mark.parametrize("level", HAND_WRITTEN)
def test_a_full_disk_is_a_user_error_and_keeps_the_last_checkpoint(level: str, tmp_path: Path) -> None:
    run = Run(level, tmp_path)
    run.step()
    run.save()
    run.step()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (2000, limits[1])
    )  # files above 2000 bytes fail, as on a full disk
    try:
        with pytest.raises(UserError, match="--out"):
            run.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert run.resume().state.step == 1


@pytest.mark.parametrize("level", LEVELS)
def test_the_first_ctrl_c_waits_and_the_second_does_not(level: str) -> None:
    states = importlib.import_module(f"{level}.pretrain.components.training_state")
    handler = signal.getsignal(signal.SIGINT)
    with states.StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with states.StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    assert signal.getsignal(signal.SIGINT) is handler
