"""Checkpoints from which a run continues bit for bit, whatever moment it was killed at.

    state/step-000100/
      config.json, model.safetensors, tokenizer files     a Hugging Face folder like any other
      optimizer.safetensors                               both moments of every parameter, the step count
      training_state.json                                 everything else: steps, place in the data, fingerprint

A checkpoint is written under a temporary name and renamed when all of it is on disk, so a folder called `step-…` is always
whole. Nothing in it is pickled: safetensors and JSON cannot run code (training_state.md tells what must be in it, and why
the random numbers of dropout need no entry). Level 1 writes the same folder from a callback of the
`Trainer`; level 3 writes the same files.

    checkpoint = find_checkpoint(run.stage("pretrain") / "state", run.fingerprint("pretrain"), resume=True)
"""

import os
import secrets
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from shared_data.errors import explain_os_error
from shared_data.files import read_json, write_json


@dataclass
class TrainingState:
    """Where a run stands, apart from weights and moments; plain numbers, for JSON."""

    step: int = 0  # finished optimizer steps
    tokens: int = 0  # predictions trained on so far
    seconds: float = 0.0  # spent in those steps; the only entry that depends on the clock
    loader: dict[str, Any] = field(default_factory=dict)  # PackedDataLoader.state_dict()
    loss_scaler: dict[str, Any] = field(default_factory=dict)  # LossScaler.state_dict(), float16 only


def save_training_state(
    folder: Path,
    state: TrainingState,
    write_weights: Callable[[Path], None],
    optimizer: Any,  # with `save(path)`
    *,
    fingerprint: str,
    keep: int,
) -> Path:
    """Write the checkpoint of this step, drop all but the newest `keep`, return its folder.

    `write_weights(folder)` puts the weights there: of one model or more, or of adapters.
    `fingerprint` names the settings and data of the run. Raises `UserError` where the disk is full or not writable.
    """
    final = folder / f"step-{state.step:06d}"
    if not final.exists():  # a run that repeats a step after a resume repeats it exactly
        temporary = folder / f".{final.name}.{secrets.token_hex(4)}.tmp"
        try:
            temporary.mkdir(parents=True)
            write_weights(temporary)
            optimizer.save(temporary / "optimizer.safetensors")
            write_json(temporary / "training_state.json", {"fingerprint": fingerprint, **asdict(state)})
            _flush_to_disk(temporary)
            os.rename(temporary, final)  # from here on the checkpoint exists, all of it at once
            _flush_to_disk(folder)
        except OSError as error:
            raise explain_os_error(error, final) or error from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    for old in _checkpoints(folder)[:-keep]:
        _remove(old)
    return final


def find_checkpoint(folder: Path, fingerprint: str, resume: bool) -> Path | None:
    """The checkpoint that a run with this fingerprint continues from; None where it starts over.

    What killed runs left under temporary names, in `folder` or beside it, is swept away. Checkpoints stay: a run that starts over
    deletes them (`clear_training_states`) when nothing can keep it from starting any more.
    """
    clear_unfinished(folder.parent)
    clear_unfinished(folder)
    return newest_training_state(folder, fingerprint) if resume else None


def newest_training_state(folder: Path, fingerprint: str) -> Path | None:
    """The newest checkpoint of a run with this fingerprint; None where there is none."""
    for checkpoint in reversed(_checkpoints(folder)):
        if read_json(checkpoint / "training_state.json").get("fingerprint") == fingerprint:
            return checkpoint
    return None


def load_training_state(checkpoint: Path, optimizer: Any) -> TrainingState:
    """Fill the optimizer and return where the run stood; the weights are read from the same folder."""
    values = read_json(checkpoint / "training_state.json")
    values.pop("fingerprint")
    optimizer.load(checkpoint / "optimizer.safetensors")
    return TrainingState(**values)


def clear_training_states(folder: Path) -> None:
    """Delete all checkpoints: the run starts over."""
    for checkpoint in _checkpoints(folder):
        _remove(checkpoint)


def clear_unfinished(folder: Path) -> None:
    """Delete what killed runs left under temporary names in a folder."""
    for leftover in folder.glob(".*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


class StopRequest:
    """Inside `with StopRequest() as stop:`, Ctrl-C and SIGTERM only set `stop.requested`.

    The loop finishes its step, saves and leaves. A second Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _checkpoints(folder: Path) -> list[Path]:
    """All whole checkpoints, the oldest first."""
    steps = {path: path.name.removeprefix("step-") for path in folder.glob("step-*")}
    return sorted(
        (path for path, step in steps.items() if step.isdecimal()), key=lambda path: int(steps[path])
    )


def _remove(checkpoint: Path) -> None:
    """Rename first: a run killed while it deletes must not leave half a checkpoint under a checkpoint's name."""
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
