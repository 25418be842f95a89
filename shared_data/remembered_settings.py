"""The settings of a command: those that its run folder remembers, with what the command line changes of them.

A run folder keeps `settings.toml`, what it is made with, and `config.toml`, the configuration it began with. A later command
inherits the first; where it names a configuration, what differs from the one kept (another file, or the same file
edited) is taken over, and what `--set` changed before stays. So hints need not repeat a setting.

    uv run python -c "from shared_data.remembered_settings import open_run; print(open_run('v2', out=Path('runs/v2/tiny')).settings)"
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from shared_data.errors import UserError
from shared_data.files import lock_folder
from shared_data.finished import FINISHED, OF_ANOTHER_VERSION, read_finished
from shared_data.run_writing import CONFIG, SETTINGS, recover
from shared_data.runs import RunFolder
from shared_data.settings import Settings, change_settings, load_settings, parse_override, walk_settings
from shared_data.settings_align import BUILT_IN_REWARDS
from shared_data.stages import STAGES


def open_run(
    level: str,
    config: str | None = None,
    assignments: list[str] | None = None,
    out: Path | None = None,
    force: bool = False,
) -> tuple[RunFolder, list[str]]:
    """The run folder that the options of a command name, with its settings; and each change of a remembered one, in words.

    config: a name or a path; None for the one that the folder remembers, or tiny.  assignments: of `--set`.
    force: a folder of another version of this project, whose settings cannot be read, is taken as new.
    """
    assignments = assignments or []
    path = out or Path("runs") / level / _name(config, assignments)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, not the folder of a run; choose another one with --out")
    if (path / SETTINGS).is_file():
        with suppress(UserError), lock_folder(path):  # unless a process is at work in it
            recover(path)
    for stage in () if force else STAGES:
        if read_finished(path / stage) == OF_ANOTHER_VERSION:
            raise UserError(
                f"{path / stage / FINISHED} is damaged, or of another version of this project; delete {path / stage} to make the stage again, "
                "or choose another folder with --out"
            )
    try:
        made = load_settings(path / SETTINGS) if (path / SETTINGS).is_file() else None
        began = load_settings(path / CONFIG) if made and (path / CONFIG).is_file() else made
    except UserError as error:
        if not force:
            reason = str(error).partition(";")[0]
            raise UserError(
                f"{path} was made by another version of this project, or its settings are damaged ({reason}); start it again with "
                "`run --force`, or choose another folder with --out"
            ) from error
        made = began = None
    if made is None or began is None:
        run = RunFolder(level, load_settings(config or "tiny", assignments), path)
        run.configuration = load_settings(config or "tiny")
        _check_code_is_asked_for(run.settings, None, assignments)
        return run, []
    configuration = load_settings(config) if config else began
    before = _values(made)
    values = before | _differences(began, configuration)
    run = RunFolder(level, change_settings(values, assignments, str(config or path / SETTINGS)), path)
    run.configuration = configuration
    _check_code_is_asked_for(run.settings, made, assignments)
    return run, [
        f"settings of {path}: {key} = {value} (was {before[key]})"
        for key, value in _differences(made, run.settings).items()
    ]


def _check_code_is_asked_for(settings: Settings, remembered: Settings | None, assignments: list[str]) -> None:
    """Refuse a reward function, the one setting that runs code, that comes from a configuration file alone: the file may be somebody's."""
    typed = {".".join(keys) for keys, _ in map(parse_override, assignments)}
    for stage in ("ppo", "grpo"):
        reward = getattr(settings, stage).reward
        known = remembered is not None and getattr(remembered, stage).reward == reward
        if reward in BUILT_IN_REWARDS or known or f"{stage}.reward" in typed:
            continue
        raise UserError(
            f"the configuration names code that would be run: {stage}.reward = {reward}; if you trust that file, ask for it with "
            f"--set {stage}.reward={reward}"
        )


def _name(config: str | None, assignments: list[str]) -> str:
    """The name of the run, for its folder."""
    names = [value for keys, value in map(parse_override, assignments) if keys == ["name"]]
    return str(names[-1]) if names else load_settings(config).name if config else "tiny"


def _values(settings: Settings) -> dict[str, Any]:
    """Every setting by its dotted name."""
    return {key: value for key, value, _ in walk_settings(settings)}


def _differences(before: Settings, after: Settings) -> dict[str, Any]:
    """The settings that are not the same, with their new values."""
    old = _values(before)
    return {key: value for key, value in _values(after).items() if old[key] != value}
