"""`finished.json`: that a stage has finished, from which inputs, with which files and which numbers, all in one atomic write.

    {"id": "9f3c…", "inputs": {…}, "outputs": {"model.safetensors": 4050000, …}, "metrics": {"loss": 1.2, …}}

The id is a digest of inputs and contents: a result that is made again bit for bit is the same result, and what rests on it
stays current.

    uv run python -c "from shared_data.finished import *; print(read_finished(Path('runs/v2/tiny/data')))"
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from shared_data.errors import UserError
from shared_data.files import read_json, write_json
from shared_data.fingerprints import Inputs
from shared_data.state_schema import FinishedRecord

FINISHED = "finished.json"
UNFINISHED = "unfinished.json"  # whose training was begun in this folder: {"inputs": {…}}
ASIDE = ".finished.json.aside"  # the record while its stage is done again in place
# Not needed by later stages: checkpoints to resume from, logs and plots. A user may delete them.
_STATE_FOLDERS = ("state", "trainer")
_PASSING = ("metrics_log.jsonl", "timings.jsonl", ".svg", FINISHED, UNFINISHED, ".toml")


@dataclass(frozen=True)
class Finished:
    """The record of a finished stage."""

    id: str
    inputs: Inputs
    outputs: dict[str, int]  # size in bytes by path
    metrics: dict[str, float]


OF_ANOTHER_VERSION = Finished("", {}, {}, {})  # a record that cannot be read


def read_finished(folder: Path) -> Finished | None:
    """The record in a stage's folder, `OF_ANOTHER_VERSION` where it is not one of ours; None where there is none."""
    path = folder / FINISHED
    if not path.is_file():
        return None
    try:
        values = read_json(path)
        FinishedRecord.read(values, path)
        return Finished(**values)
    except (UserError, TypeError):  # damaged, or of other entries
        return OF_ANOTHER_VERSION


def write_finished(folder: Path, inputs: Inputs, metrics: dict[str, float]) -> None:
    """Mark the stage in this folder as finished: from here on it is, with its numbers."""
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode())
    outputs = {}
    for file in _outputs(folder):
        outputs[file.relative_to(folder).as_posix()] = file.stat().st_size
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    write_json(folder / FINISHED, asdict(Finished(digest.hexdigest()[:16], inputs, outputs, metrics)))


def damage(folder: Path, finished: Finished) -> str | None:
    """The first output of a finished stage that is no longer what it was, in words; None where all are."""
    for name, size in finished.outputs.items():
        file = folder / name
        if not file.is_file():
            return f"its {name} is missing"
        if file.stat().st_size != size:
            return f"its {name} is damaged: {file.stat().st_size:,} bytes, not {size:,}"
    return None


def _outputs(folder: Path) -> Iterator[Path]:
    """The files of a stage that count as its result."""
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        kept = parts[0] not in _STATE_FOLDERS and not any(
            part.startswith((".", "checkpoint-")) for part in parts
        )
        if kept and file.is_file() and not file.name.endswith(_PASSING):
            yield file


def inputs_of_unfinished(folder: Path) -> Inputs:
    """What an interrupted training was made with; nothing where the record is damaged."""
    with suppress(UserError):
        inputs = read_json(folder / UNFINISHED).get("inputs")
        return inputs if isinstance(inputs, dict) else {}
    return {}


def has_checkpoints(folder: Path) -> bool:
    """Whether an interrupted training has more than a log to lose."""
    return any(not name.endswith(".jsonl") for name in sizes_and_times(folder))


def sizes_and_times(folder: Path) -> dict[str, tuple[int, int]]:
    """What a folder holds, precisely enough to notice any change by this process; the marker aside."""
    return {
        str(file): (file.stat().st_size, file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file() and file.name not in (FINISHED, UNFINISHED, ASIDE)
    }
