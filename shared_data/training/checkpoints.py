"""Checkpoints from which a run continues bit for bit, whatever moment it was killed at.

    state/step-000100/
      config.json, model.safetensors, tokenizer files     a Hugging Face folder like any other
      optimizer.safetensors                               both moments of every parameter, the step count
      training_state.json                                 everything else: steps, place in the data, fingerprint

A checkpoint is written under a temporary name and renamed when all of it is on disk, so a folder called `step-…` is always
whole. Nothing in it is pickled: safetensors and JSON cannot run code (checkpoints.md tells what must be in it, and why the random
numbers of dropout need no entry). Levels 2 and 3 write the same files; level 1's trainers have checkpoints of their own.

    save_checkpoint(folder, TrainingState(step=100), write_weights, fingerprint="…", keep=2)
"""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shared_data.errors import UserError, explain_os_error
from shared_data.files import read_json, write_json
from shared_data.state_schema import TrainingRecord


@dataclass
class TrainingState:
    """Where a run stands, apart from weights and moments; plain numbers, for JSON."""

    step: int = 0  # finished optimizer steps
    tokens: int = 0  # trained on so far
    seconds: float = 0.0  # spent in those steps; the only entry that depends on the clock
    data: dict[str, Any] = field(default_factory=dict)  # DataOrder.state_dict()
    loss_scaler: dict[str, Any] = field(default_factory=dict)  # float16 only


def save_checkpoint(
    folder: Path, state: TrainingState, write: Callable[[Path], None], *, fingerprint: str, keep: int
) -> Path:
    """Write the checkpoint of this step, drop all but the newest `keep`, return its folder.

    `write(folder)` puts weights and optimizer there. `fingerprint` names the settings and data of the run. Raises `UserError`
    where the disk is full or not writable.
    """
    final = folder / f"step-{state.step:06d}"
    if not final.exists():  # a run that repeats a step after a resume repeats it exactly
        temporary = folder / f".{final.name}.{secrets.token_hex(4)}.tmp"
        try:
            temporary.mkdir(parents=True)
            write(temporary)
            write_json(temporary / "training_state.json", {"fingerprint": fingerprint, **asdict(state)})
            _flush_to_disk(temporary)
            os.rename(temporary, final)  # from here on the checkpoint exists, all of it at once
            _flush_to_disk(folder)
        except OSError as error:
            raise explain_os_error(error, final) or error from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    for old in _checkpoints(folder)[:-keep]:
        remove_checkpoint(old)
    return final


def newest_checkpoints(folder: Path, fingerprint: str) -> Iterator[tuple[Path, TrainingState | UserError]]:
    """The checkpoints of a run with this fingerprint, the newest first: each with its state, or what is wrong with it."""
    for checkpoint in reversed(_checkpoints(folder)):
        try:
            values = read_json(checkpoint / "training_state.json")
            TrainingRecord.read(values, checkpoint / "training_state.json")
            if values["fingerprint"] == fingerprint:
                yield checkpoint, TrainingState(**{name: values[name] for name in asdict(TrainingState())})
        except UserError as error:
            yield checkpoint, error


def clear_checkpoints(folder: Path) -> None:
    """Delete all checkpoints: the run starts over."""
    for checkpoint in _checkpoints(folder):
        remove_checkpoint(checkpoint)


def clear_unfinished(folder: Path) -> None:
    """Delete what killed runs left under temporary names in a folder."""
    for leftover in folder.glob(".*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _checkpoints(folder: Path) -> list[Path]:
    """All whole checkpoints, the oldest first."""
    steps = {path: path.name.removeprefix("step-") for path in folder.glob("step-*")}
    return sorted(
        (path for path, step in steps.items() if step.isdecimal()), key=lambda path: int(steps[path])
    )


def remove_checkpoint(checkpoint: Path) -> None:
    """Delete a checkpoint. Rename first: a run killed while it deletes must not leave half a checkpoint under a checkpoint's name."""
    unfinished = checkpoint.with_name(f".{checkpoint.name}.{secrets.token_hex(4)}.tmp")
    os.rename(checkpoint, unfinished)
    shutil.rmtree(unfinished, ignore_errors=True)


def _flush_to_disk(folder: Path) -> None:
    """Have the operating system write the names in a folder now: a power cut must not undo what a rename promised."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
