"""What the result of a stage depends on, flat: its settings, the local files they name, the result before it.

    {"level": "v2", "data.seed": 0, "data.source file corpus.txt": [size, time], "result of data": "9f3c…"}

Two results with the same inputs are the same result, so `make`-like decisions and resumable trainings compare these.

    uv run python -c "from shared_data.fingerprints import *; from shared_data.settings import Settings; print(stage_inputs('v2', Settings(), 'data'))"
"""

import glob
import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from shared_data.errors import UserError
from shared_data.peft.adapter_files import base_of_adapter
from shared_data.settings import Settings, walk_settings
from shared_data.stages import STAGES, WITHOUT_EFFECT

Inputs = dict[str, Any]
RESULT_OF = "result of "


def stage_inputs(
    level: str, settings: Settings, stage: str, before: str | None = None, result: str | None = None
) -> Inputs:
    """The inputs of a stage, as they look after a trip through a JSON file.

    before: the stage whose result it reads, if any.  result: the id of that result.
    """
    spec = STAGES[stage]
    values: Inputs = {"level": level}
    for section in spec.sections:
        for key, value, _ in walk_settings(getattr(settings, section), f"{section}."):
            values |= {} if key in WITHOUT_EFFECT else {key: value}
    for key in spec.local_paths:
        section, _, name = key.rpartition(".")
        values |= _local_files(key, getattr(getattr(settings, section), name))
    if before:
        values[RESULT_OF + before] = result
    return json.loads(json.dumps(values))


def fingerprint(inputs: Inputs) -> str:
    """The inputs as a short text."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def changed_inputs(before: Inputs, now: Inputs) -> list[str]:
    """What is different, in words; the results of earlier stages come last.

    A setting that there was not yet when a result was made counts as its default.
    """
    defaults = {key: value for key, value, _ in walk_settings(Settings())}
    added = {key for key in now if key not in before and key in defaults and now[key] == defaults[key]}
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key) and key not in added]
    keys.sort(key=lambda key: key.startswith(RESULT_OF))
    return [_describe(key, before.get(key), now.get(key)) for key in keys]


def _describe(key: str, before: Any, now: Any) -> str:
    if " file " in key and now is None:
        return f"the {key} is not there any more (relative paths count from the folder in which a command is run)"
    if key.startswith(RESULT_OF) or " file " in key:  # no setting: the name says enough
        return f"the {key} is not the one it was made with"
    return f"it was made with {key} = {before}, not {now}"


def _local_files(key: str, value: str | None) -> Inputs:
    """Size and time of change of each local file that a setting names: itself, in its folder, or by its glob."""
    if value is None:
        return {}
    path = Path(value).expanduser()
    function_of = Path(value.rpartition(":")[0])  # of a setting such as rewards.py:brevity
    if function_of.is_file():
        files = [function_of]
    elif path.is_dir():
        files = _files_in(path)
        with suppress(UserError):  # an adapter's base belongs to it
            base = base_of_adapter(path)
            files += [] if base is None else [base] if base.is_file() else _files_in(base)
    elif path.is_file():
        files = [path]
    else:
        files = [Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file()]
    return {f"{key} file {file}": [file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(files)}


def _files_in(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]
