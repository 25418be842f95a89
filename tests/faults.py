"""Fault injection: a training is killed at every write and every rename, run again, and must end as if nothing had happened.

A process that has imported a level forks itself for each command, so a kill costs no import. In the child, the n-th write puts half
of its bytes on disk, or the n-th rename is not made, and then the process is gone, as in a power cut. The next command must
finish the stage with the same bytes: weights, moments, log, numbers.

    python -m tests.faults                          every stage of levels 2 and 3, some minutes
    python -m tests.faults --level v3 --stage grpo
"""

import argparse
import builtins
import importlib
import io
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shared_data.stages import upstream
from tests.end_to_end.conftest import PACKAGES, TINIEST

LEVELS = ("v2", "v3")
STAGES = ("pretrain", "sft", "reward", "dpo", "ppo", "grpo")
MODULES = (
    "pretrain.train",
    "finetune.sft_train",
    "align.rm_train",
    "align.dpo_train",
    "align.ppo_train",
    "align.grpo_train",
)
CLOCK = ("seconds", "tokens_per_second")
# Two steps, each of which logs and saves.
OPTIONS = ["max_steps=2", "logging_steps=1", "save_steps=1"]

Trap = Callable[[Path], None]  # installed in the child, which works in this folder


def run(level: str, stage: str, folder: Path, *words: str, trap: Trap | None = None) -> int:
    """The exit code of a stage's command in a fork of this process, or minus the signal that killed it."""
    config = folder.parent / "tiniest.toml"
    config.write_text(TINIEST)
    app = importlib.import_module(f"{PACKAGES[level]}.cli").app
    for module in MODULES:
        importlib.import_module(f"{PACKAGES[level]}.{module}")
    overrides = [word for option in OPTIONS if stage in STAGES for word in ("--set", f"{stage}.{option}")]
    child = os.fork()
    if child == 0:
        output = os.open(folder.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(output, number)
        code = 1
        try:
            if trap:
                trap(folder)
            app([stage, "--config", str(config), "--out", str(folder), *overrides, *words])
        except SystemExit as leave:
            code = int(leave.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def prepare(level: str, stage: str, folder: Path, *words: str) -> None:
    """Everything before a stage, in a folder."""
    for earlier in upstream(stage):
        assert run(level, earlier, folder, *words) == 0, (folder.parent / "output.txt").read_text()


def kill_at(number: int) -> Trap:
    """Kill this process at its so many-th write or rename below the folder, counted from 0."""

    def install(folder: Path) -> None:
        count = itertools.count()
        real_open = builtins.open

        def due() -> bool:
            return next(count) == number

        class Torn:
            """A file whose write may stop half-way."""

            def __init__(self, file: Any) -> None:
                self._file = file

            def write(self, data: Any) -> int:
                if due():
                    self._file.write(data[: len(data) // 2])
                    self._file.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
                return self._file.write(data)

            def writelines(self, lines: Any) -> None:
                for line in lines:
                    self.write(line)

            def __enter__(self) -> "Torn":
                return self

            def __exit__(self, *error: object) -> None:
                self._file.close()

            def __iter__(self) -> Iterator[Any]:
                return iter(self._file)

            def __getattr__(self, name: str) -> Any:
                return getattr(self._file, name)

        def torn_open(file: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
            opened = real_open(file, mode, *arguments, **keywords)
            inside = isinstance(file, str | os.PathLike) and str(folder) in str(file)
            writes = any(letter in mode for letter in "wax+")
            return Torn(opened) if inside and writes and not str(file).endswith(".lock") else opened

        def before(function: Callable) -> Callable:
            def renamed(source: Any, target: Any, **keywords: Any) -> None:
                if str(folder) in str(source) and due():
                    os.kill(os.getpid(), signal.SIGKILL)
                function(source, target, **keywords)

            return renamed

        builtins.open = io.open = torn_open  # type: ignore[assignment]
        os.rename, os.replace = before(os.rename), before(os.replace)

    return install


def result(folder: Path, stage: str) -> dict[str, Any]:
    """All that must be the same: every file of the stage but those of the clock, and its numbers."""
    files: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / stage).rglob("*"))
        if path.is_file() and path.suffix in (".safetensors", ".json", ".jsonl")
    }
    for name in list(files):
        if name.endswith(("timings.jsonl", "finished.json")):
            del files[name]
        elif name.endswith("training_state.json"):
            state = json.loads(files[name])
            files[name] = json.dumps(
                {key: state[key] for key in ("step", "tokens", "data", "loss_scaler")}
            ).encode()
    numbers = json.loads((folder / "metrics.json").read_text())[stage]
    finished = json.loads((folder / stage / "finished.json").read_text())
    files["inputs and outputs"] = finished["id"], finished["inputs"], finished["outputs"]
    return files | {"numbers": {key: value for key, value in numbers.items() if key not in CLOCK}}


def start(prepared: Path, folder: Path) -> Path:
    """A fresh copy of what was prepared, always in the same place: some files name their folder."""
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(prepared, folder))


def sweep(level: str, stage: str, scratch: Path, every: int = 1) -> int:
    """Kill a stage at every fault (or one in `every`), finish it, compare; returns the number of kills. Raises `AssertionError`."""
    prepared, folder, output = scratch / "prepared", scratch / "run", scratch / "output.txt"
    prepare(level, stage, prepared)
    start(prepared, folder)
    assert run(level, stage, folder) == 0, output.read_text()
    expected = result(folder, stage)
    for kills in itertools.count():
        start(prepared, folder)
        code = run(level, stage, folder, trap=kill_at(kills * every))
        where = f"{level} {stage}, killed at fault {kills * every}"
        if code == 0:
            return kills
        assert code == -signal.SIGKILL, f"{where}: {output.read_text()}"
        assert run(level, stage, folder) == 0, f"{where}: {output.read_text()}"
        found = result(folder, stage)
        different = [name for name in expected | found if found.get(name) != expected.get(name)]
        assert not different, f"{where}: {', '.join(different)} differ"
        leftovers = list(folder.rglob("*.tmp"))
        assert not leftovers, f"{where}: {leftovers[0]} is left"
    raise AssertionError("never reached: the faults of a run come to an end")


def main() -> None:
    formatter = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=formatter
    )
    parser.add_argument("--level", choices=LEVELS, action="append")
    parser.add_argument("--stage", choices=STAGES, action="append")
    parser.add_argument("--every", type=int, default=1, help="kill at one fault in so many only")
    arguments = parser.parse_args()
    for level in arguments.level or LEVELS:
        for stage in arguments.stage or STAGES:
            with tempfile.TemporaryDirectory() as folder:
                kills = sweep(level, stage, Path(folder), arguments.every)
            print(
                f"{level} {stage}: finished the same after a kill at each of {kills} writes and renames",
                flush=True,
            )


if __name__ == "__main__":
    main()
