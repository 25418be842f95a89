"""The folder of a run: where each stage finds its inputs and leaves its results, and whether those are still current.

    runs/v2/tiny/
      settings.toml           what the run was made with; `v2 run --config` on it makes it again
      metrics.json            the numbers of every finished stage
      report.html
      data/  tokenizer/  pretrain/  evaluate/  generate/
        finished.json         the inputs of the result, from which `is_current` knows whether to redo it

A result rests on the settings of its stage, on local files it read (path, size, time of change) and on the results of the
stages before it. Stages write into a folder of their own that takes its place only when they have finished, so a failed
or killed stage leaves the last good result as it was. A resumable stage (training) works in place instead.

    python -c "from shared_data.runs import RunFolder as R; from shared_data.settings import load_settings as s; print(R('v2', s()).path)"
"""

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shared_data.errors import UserError, explain_os_error
from shared_data.files import atomic_write, read_json, write_json
from shared_data.settings import Settings, settings_to_toml
from shared_data.stages import STAGES, WITHOUT_EFFECT, downstream, upstream

_MARKERS = _FINISHED, _UNFINISHED, _ASIDE = "finished.json", "unfinished.json", ".finished.json.aside"
_NOT_FINISHED = "it has not finished yet"


class RunFolder:
    """Paths of one run of one level, its metrics, and the record of which inputs made which result."""

    def __init__(self, level: str, settings: Settings, root: Path | None = None) -> None:
        """`level` is v1, v2 or v3; `root` replaces the folder `runs/<level>/<name>` (the option `--out`)."""
        self.level = level
        self.settings = settings
        self.path = Path(root) if root is not None else Path("runs") / level / settings.name
        self._in_progress: dict[str, Path] = {}

    # Where things are

    def stage(self, name: str) -> Path:
        """The folder of a stage, created if need be."""
        folder = self._in_progress.get(name, self.path / name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_os_error(error, folder) or error from error
        return folder

    def documents(self, split: str) -> Path:
        """The clean documents of a split: a JSON object with `id` and `text` a line."""
        return self.stage("data") / f"{split}.jsonl"

    def tokens(self, split: str) -> Path:
        """The tokens of a split; beside the `.bin`, a `.json` says their type and number."""
        return self.stage("tokenizer") / f"{split}.bin"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, as `tokenizer.json` of Hugging Face."""
        return self.stage("tokenizer") / "tokenizer.json"

    def model(self, stage: str = "pretrain") -> Path:
        """The model of a stage: a Hugging Face folder."""
        return self.stage(stage)

    # The numbers of finished stages

    def metrics(self) -> dict[str, dict[str, float]]:
        """The numbers of every finished stage, by stage."""
        path = self.path / "metrics.json"
        return read_json(path) if path.exists() else {}

    def record(self, stage: str, metrics: dict[str, float]) -> None:
        """Keep the numbers of a finished stage; those of stages that rested on its old result are dropped."""
        stale = {stage, *downstream(stage)}
        known = {name: numbers for name, numbers in self.metrics().items() if name not in stale}
        known[stage] = metrics
        write_json(self.path / "metrics.json", {name: known[name] for name in STAGES if name in known})

    # Which inputs made which result

    def inputs(self, stage: str) -> dict[str, Any]:
        """Everything the result of a stage depends on, flat: settings, local files, the results before it."""
        spec = STAGES[stage]
        values: dict[str, Any] = {"level": self.level}
        for section in spec.sections:
            dump = getattr(self.settings, section).model_dump(mode="json")
            values |= {key: v for key, v in _flatten(section, dump) if key not in WITHOUT_EFFECT}
        for key in spec.local_paths:
            values |= _local_files(key, _lookup(self.settings, key))
        if spec.after:
            values[f"result of {spec.after}"] = self._finished(spec.after).get("id")
        return values

    def fingerprint(self, stage: str) -> str:
        """The inputs of a stage as a short text, for a training state that must not be continued with others."""
        text = json.dumps(self.inputs(stage), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def is_current(self, stage: str) -> bool:
        """Whether the stage has finished with exactly the inputs it would have now, and so have those before it."""
        return self.why_not_current(stage) is None

    def why_not_current(self, stage: str) -> str | None:
        """What is different from when the stage last finished (the first difference), or None where nothing is."""
        for earlier in upstream(stage):
            if self._own_change(earlier) is not None:
                return f"stage {earlier} has changed"
        return self._own_change(stage)

    def require(self, stage: str) -> None:
        """Raise a `UserError` unless every stage before this one is finished and current."""
        for earlier in upstream(stage):
            change = self._own_change(earlier)
            if change is None:
                continue
            remedy = f"run `{self.level} {earlier}` first, or `{self.level} run` for all stages"
            if change != _NOT_FINISHED:
                remedy = f"use the options it was made with, or {remedy}"
            raise UserError(f"{stage} needs the stage {earlier} in {self.path}, but {change}; {remedy}")

    def mark_done(self, stage: str) -> None:
        """Record that the stage has finished with the inputs it has now."""
        finished = {"id": secrets.token_hex(8), "time": time.time(), "inputs": self.inputs(stage)}
        write_json(self.stage(stage) / _FINISHED, finished)
        with atomic_write(self.path / "settings.toml", "w") as file:
            file.write(settings_to_toml(self.settings))

    def _finished(self, stage: str) -> dict[str, Any]:
        path = self.path / stage / _FINISHED
        return read_json(path) if path.exists() else {}

    def _own_change(self, stage: str) -> str | None:
        """The first input of this stage alone that changed since it finished."""
        return self._difference(stage, self._finished(stage).get("inputs"))

    def _difference(self, stage: str, before: dict[str, Any] | None) -> str | None:
        """The first input that is not what it was."""
        if before is None:
            return _NOT_FINISHED
        now = json.loads(json.dumps(self.inputs(stage)))  # as it looks after a trip through the file
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if not changed:
            return None
        key = changed[0]
        if " of " in key or " file " in key:  # of the inputs that are no settings, the name says enough
            return f"the {key} is not the one it was made with"
        return f"it was made with {key} = {before.get(key)}, not {now.get(key)}"

    # Writing

    @contextmanager
    def writing(self, stage: str) -> Iterator[None]:
        """Do the work of a stage inside: its folder takes the place of the last result when the block ends well."""
        if STAGES[stage].resumable:
            with self._writing_in_place(stage):
                yield
            return
        final, fresh, old = self.path / stage, self.path / f".{stage}.unfinished", self.path / f".{stage}.old"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        self._in_progress[stage] = fresh
        try:
            yield
            self.stage(stage)
            self.mark_done(stage)
            if final.exists():
                os.replace(final, old)
            os.replace(fresh, final)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            del self._in_progress[stage]
            shutil.rmtree(fresh, ignore_errors=True)

    @contextmanager
    def _writing_in_place(self, stage: str) -> Iterator[None]:
        """From the first change on, the result counts as unfinished, and whose it is stands in `unfinished.json`."""
        folder = self.stage(stage)
        finished, unfinished, aside = folder / _FINISHED, folder / _UNFINISHED, folder / _ASIDE
        aside.unlink(missing_ok=True)
        before, was_interrupted = _sizes_and_times(folder), unfinished.exists()
        try:
            if finished.exists():
                os.replace(finished, aside)
            write_json(unfinished, {"inputs": self.inputs(stage)})
            yield
            self.mark_done(stage)
            unfinished.unlink()
        except BaseException:
            if _sizes_and_times(folder) == before:  # refused or interrupted before anything was touched
                if not was_interrupted:
                    unfinished.unlink(missing_ok=True)
                if aside.exists():
                    os.replace(aside, finished)
                with suppress(OSError):
                    folder.rmdir()  # the folder too, if it was made just now and is empty
            raise
        finally:
            aside.unlink(missing_ok=True)

    def is_interrupted(self, stage: str) -> bool:
        """Whether a resumable stage was interrupted, by Ctrl-C, a kill or an error, and can be continued."""
        return (self.path / stage / _UNFINISHED).exists()

    def protect_interrupted(self, stage: str) -> None:
        """Raise a `UserError` rather than start over in place of an interrupted training with other settings."""
        if not self.is_interrupted(stage):
            return
        change = self._difference(stage, read_json(self.path / stage / _UNFINISHED).get("inputs"))
        if change is not None:
            raise UserError(
                f"{self.path / stage} holds an interrupted {stage}, but {change}; use the options it was made with to "
                f"continue it, `{self.level} {stage} --force` to start over, or another folder with --out"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing into the same run; the lock goes with the process, however it ends."""
        try:
            import fcntl
        except ImportError:  # Windows has no flock: two runs at once stay the user's own care there
            yield
            return
        lock = self.path / ".lock"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(lock, "a+")  # noqa: SIM115  closed below; the lock lives as long as it is open
        except OSError as error:
            raise explain_os_error(error, self.path) or error from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"another process writes into {self.path}; wait for it, or choose another folder with --out"
                ) from error
            yield


def _flatten(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """`{"a": {"b": 1}}` as `("a.b", 1)`."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(f"{prefix}.{key}", value)
        else:
            yield f"{prefix}.{key}", value


def _lookup(settings: Settings, key: str) -> Any:
    """The value of a setting by its dotted name."""
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _local_files(key: str, value: str | None) -> dict[str, Any]:
    """Size and time of change of each local file that a setting names: itself, in its folder, or by its glob."""
    if value is None:
        return {}
    path = Path(value).expanduser()
    function_of = Path(value.rpartition(":")[0])  # of a setting such as rewards.py:brevity
    if function_of.is_file():
        files = [function_of]
    elif path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
    elif path.is_file():
        files = [path]
    else:
        import glob

        files = [Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file()]
    return {f"{key} file {file}": [file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(files)}


def _sizes_and_times(folder: Path) -> dict[str, tuple[int, int]]:
    """What a folder holds, precisely enough to notice any change by this process; the marker aside."""
    return {
        str(file): (file.stat().st_size, file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file() and file.name not in _MARKERS
    }
