"""How a stage writes its result so that a kill between any two writes loses nothing.

A stage that is done from its beginning works in `.data.unfinished`. Its `finished.json`, written last, is the moment from which the
new result counts; settings and folders then change places, and `recover` completes that where a kill came between.

A training works in its own folder, where its checkpoints are. `unfinished.json` is the moment from which the last result
no longer counts: it says which inputs the training has and, until they are remembered, with which settings.

    with run.writing("pretrain") as metrics:
        metrics.update(pretrain(settings, run))
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shared_data.errors import UserError
from shared_data.files import read_bytes, read_json, restore, sweep, write_json
from shared_data.finished import ASIDE, FINISHED, UNFINISHED, read_finished, sizes_and_times, write_finished
from shared_data.settings import settings_to_toml
from shared_data.stages import STAGES

if TYPE_CHECKING:
    from shared_data.runs import RunFolder

# What the run is made with, and the configuration it began with (`remembered_settings.py`).
SETTINGS, CONFIG = "settings.toml", "config.toml"


@contextmanager
def in_a_fresh_folder(run: "RunFolder", stage: str) -> Iterator[dict[str, float]]:
    """The folder takes the place of the last result when the block ends well."""
    check_only_ours(run, stage)
    final, fresh, _ = _places(run.path, stage)
    before, settings = _remembered(run.path), _settings(run)
    shutil.rmtree(fresh, ignore_errors=True)
    run.in_progress[stage] = fresh
    if not (final / FINISHED).exists():  # a last result keeps its settings until the new one counts
        _remember(run.path, settings)
    metrics: dict[str, float] = {}
    try:
        yield metrics
        folder = run.stage(stage)
        _remember(folder, settings)
        write_finished(folder, run.inputs(stage), metrics)
        _change_places(run.path, stage)
    except UserError:  # a wrong setting is not remembered
        _remember(run.path, before)
        raise
    finally:
        del run.in_progress[stage]
        shutil.rmtree(fresh, ignore_errors=True)
    run.write_metrics()


@contextmanager
def in_place(run: "RunFolder", stage: str) -> Iterator[dict[str, float]]:
    """From the first change on, the result counts as unfinished; refused or interrupted before that, it stays as it was."""
    folder = run.stage(stage)
    finished, unfinished, aside = folder / FINISHED, folder / UNFINISHED, folder / ASIDE
    before, settings, inputs = _remembered(run.path), _settings(run), run.inputs(stage)
    files, was_finished, was_unfinished = sizes_and_times(folder), finished.exists(), read_bytes(unfinished)
    last = read_finished(folder)
    metrics: dict[str, float] = {}
    try:
        write_json(unfinished, {"inputs": inputs, "settings": settings})
        if was_finished:
            os.replace(finished, aside)
        _remember(run.path, settings)
        write_json(unfinished, {"inputs": inputs})
        yield metrics
        now = sizes_and_times(folder)
        for name in (
            last.outputs if last else ()
        ):  # what the last result had and this one has not, as samples of other prompts
            path = str(folder / name)
            if path in now and now[path] == files.get(path):
                Path(path).unlink()
        write_finished(folder, run.inputs(stage), metrics)
        unfinished.unlink()
    except BaseException as error:
        if sizes_and_times(folder) == files:
            if was_finished or isinstance(error, UserError):
                _remember(run.path, before)
            if aside.exists():
                os.replace(aside, finished)
            restore(unfinished, was_unfinished)
            for empty in sorted((*folder.rglob("*/"), folder), reverse=True):  # made just now
                with suppress(OSError):
                    empty.rmdir()
        raise
    finally:
        aside.unlink(missing_ok=True)
    run.write_metrics()


def check_only_ours(run: "RunFolder", stage: str) -> None:
    """Raise `UserError` where the folder of a stage holds files that no run wrote, or what the stage reads: they could be lost."""
    folder = run.path / stage
    began = any((folder / name).exists() for name in (FINISHED, UNFINISHED, ASIDE))
    foreign = None if began else next(iter(sizes_and_times(folder)), None)
    if foreign:
        raise UserError(f"{foreign} is not of a run; move it elsewhere, or choose another folder with --out")
    for key in STAGES[stage].local_paths:
        section, _, name = key.rpartition(".")
        source = getattr(getattr(run.settings, section), name)
        if source is not None and Path(source).expanduser().resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{key} = {source} lies where the stage {stage} writes; move it elsewhere")


def recover(root: Path) -> None:
    """Complete what a killed process was about to change in a run folder, and sweep away what it left; touch no other folder."""
    if not (root / SETTINGS).is_file():
        return
    for stage in STAGES:
        final, fresh, old = _places(root, stage)
        if (fresh / FINISHED).exists():
            _change_places(root, stage)
        elif old.exists() and not final.exists():
            os.replace(old, final)
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        unfinished = final / UNFINISHED
        if (final / FINISHED).exists():  # the result counts again, or still
            unfinished.unlink(missing_ok=True)
        elif unfinished.exists():
            with suppress(UserError):
                record = read_json(unfinished)
                if "settings" in record:
                    _remember(root, record.pop("settings"))
                    write_json(unfinished, record)
        (final / ASIDE).unlink(missing_ok=True)
        sweep(final)
    sweep(root)


def _places(root: Path, stage: str) -> tuple[Path, Path, Path]:
    """The folder of a stage, the one it is made in, and where the last result stands while they change places."""
    return root / stage, root / f".{stage}.unfinished", root / f".{stage}.old"


def _change_places(root: Path, stage: str) -> None:
    """Put a finished result and its settings where they belong; can be repeated from any point."""
    final, fresh, old = _places(root, stage)
    for name in (CONFIG, SETTINGS):
        if (fresh / name).exists():
            os.replace(fresh / name, root / name)
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
    os.replace(fresh, final)
    shutil.rmtree(old, ignore_errors=True)


def _settings(run: "RunFolder") -> dict[str, str | None]:
    """The settings of a run as the files that remember them."""
    return {CONFIG: settings_to_toml(run.configuration), SETTINGS: settings_to_toml(run.settings)}


def _remembered(root: Path) -> dict[str, str | None]:
    """These files as they are."""
    texts = {name: read_bytes(root / name) for name in (CONFIG, SETTINGS)}
    return {name: None if text is None else text.decode(errors="replace") for name, text in texts.items()}


def _remember(folder: Path, texts: dict[str, str | None]) -> None:
    for name, text in texts.items():
        content = None if text is None else text.encode()
        if read_bytes(folder / name) != content:
            restore(folder / name, content)
