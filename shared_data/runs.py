"""The folder of a run: where each stage finds its inputs and leaves its results, and whether those are still current.

    runs/v2/tiny/
      settings.toml           what the run is made with: commands in this folder inherit it (`run_settings.py`)
      config.toml             the configuration it began with, before `--set`
      metrics.json            the numbers of every finished stage, collected from their finished.json
      report.html
      data/  tokenizer/  pretrain/  evaluate/  generate/
        finished.json         inputs, outputs and numbers of the result (`finished.py`)

A result rests on the settings of its stage, on local files it read (path, size, time of change) and on the results of the
stages before it. Stages write into a folder of their own that takes its place only when they have finished, so a failed
or killed stage leaves the last good result as it was. A resumable stage (training) works in place instead.

    uv run python -c "from shared_data.runs import RunFolder as R; from shared_data.settings import load_settings as s; print(R('v2', s()).path)"
"""

import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from shared_data.errors import UserError, explain_os_error
from shared_data.files import lock_folder, read_bytes, read_json, write_json
from shared_data.fingerprints import RESULT_OF, Inputs, changed_inputs, fingerprint, stage_inputs
from shared_data.finished import (
    FINISHED,
    OF_ANOTHER_VERSION,
    UNFINISHED,
    damage,
    has_checkpoints,
    inputs_of_unfinished,
    read_finished,
)
from shared_data.run_writing import SETTINGS, check_only_ours, in_a_fresh_folder, in_place, recover
from shared_data.settings import Settings, available_configs, load_settings, settings_to_toml
from shared_data.stages import STAGES, STARTS_FROM, is_stage_name

_NOT_FINISHED = "it has not finished yet"


class RunFolder:
    """Paths of one run of one level, its metrics, and the record of which inputs made which result."""

    def __init__(self, level: str, settings: Settings, root: Path | None = None) -> None:
        """`level` is v1, v2 or v3; `root` replaces the folder `runs/<level>/<name>` (the option `--out`)."""
        self.level = level
        self.settings = settings
        self.configuration = settings  # before `--set`
        self.path = Path(root) if root is not None else Path("runs") / level / settings.name
        self.in_progress: dict[str, Path] = {}  # where the results of stages at work are made

    # Where things are

    def stage(self, name: str) -> Path:
        """The folder of a stage, created if need be."""
        folder = self.in_progress.get(name, self.path / name)
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

    def command(self, *words: str, level: str | None = None) -> str:
        """A command in this run as a user types it; the run remembers its settings, so it only has to be found."""
        level = level or self.level
        name = self.settings.name
        known = name in available_configs() and self.configuration == load_settings(name)
        if self.path != Path("runs") / self.level / name or not known:
            words = (*words, "--out", str(self.path))
        elif name != "tiny":
            words = (*words, "--config", name)
        return shlex.join([level, *words])

    def remembers_its_settings(self) -> bool:
        """Whether a later command in this folder has the settings of this one."""
        return read_bytes(self.path / SETTINGS) == settings_to_toml(self.settings).encode()

    # The numbers of finished stages

    def metrics(self) -> dict[str, dict[str, float]]:
        """The numbers of every finished stage, by stage; without those that rest on a result that has been replaced."""
        numbers: dict[str, dict[str, float]] = {}
        for stage in STAGES:
            record = read_finished(self.path / stage)
            name = self.before(stage)
            before = read_finished(self.path / name) if name else None
            if record is None or (before and name not in numbers):
                continue
            if record.metrics and record.inputs.get(f"{RESULT_OF}{name}") == (before and before.id):
                numbers[stage] = record.metrics
        return numbers

    def write_metrics(self) -> None:
        """Bring metrics.json up to date; it only repeats what the stages' records hold."""
        path, numbers = self.path / "metrics.json", self.metrics()
        with suppress(UserError):
            if read_json(path) == numbers:
                return
        if numbers or path.exists():
            write_json(path, numbers)

    # Which inputs made which result

    def before(self, stage: str) -> str | None:
        """The stage whose result this one reads; None where it begins with a corpus, or with a model from elsewhere."""
        after = STAGES[stage].after
        named = getattr(getattr(self.settings, stage), "model_name_or_path", None)
        if named is None or stage not in STARTS_FROM:
            return after
        if stage == "ppo" and self.settings.ppo.reward == "reward_model":
            return after
        return named if is_stage_name(named) else None

    def upstream(self, stage: str) -> list[str]:
        """The stages that must be finished before this one, the first one first."""
        before = self.before(stage)
        return [*self.upstream(before), before] if before else []

    def inputs(self, stage: str) -> Inputs:
        """Everything the result of a stage depends on: settings, local files, the result before it."""
        name = self.before(stage)
        before = read_finished(self.path / name) if name else None
        return stage_inputs(self.level, self.settings, stage, name, before.id if before else None)

    def fingerprint(self, stage: str) -> str:
        """The inputs of a stage as a short text, for a training state that must not be continued with others."""
        return fingerprint(self.inputs(stage))

    def is_current(self, stage: str) -> bool:
        """Whether the stage has finished with exactly the inputs it would have now, and so have those before it."""
        return self.why_not_current(stage) is None

    def why_not_current(self, stage: str) -> str | None:
        """What is different from when the stage last finished, the first difference; None where nothing is."""
        for earlier in self.upstream(stage):
            if self._own_change(earlier) is not None:
                return f"stage {earlier} has changed"
        return self._own_change(stage)

    def _own_change(self, stage: str) -> str | None:
        """The first thing about this stage alone that is not what it was when it finished."""
        finished = read_finished(self.path / stage)
        if finished is None:
            return _NOT_FINISHED
        if finished is OF_ANOTHER_VERSION:
            return "its finished.json is damaged, or of another version of this project"
        broken = damage(self.path / stage, finished)
        return broken or next(iter(changed_inputs(finished.inputs, self.inputs(stage))), None)

    def require(self, stage: str) -> None:
        """Raise a `UserError` unless every stage before this one is finished and current."""
        for earlier in self.upstream(stage):
            change = self._own_change(earlier)
            if change is None:
                continue
            remedy = f"run `uv run {self.command(earlier)}` first, or `uv run {self.command('run')}` for all stages"
            if self.would_lose(earlier):
                remedy = (
                    f"use what it was made with, or run `uv run {self.command(earlier, '--force')}` first"
                )
            raise UserError(f"{stage} needs the stage {earlier} in {self.path}, but {change}; {remedy}")

    def protect(self, stage: str, remedy: str = "--force") -> None:
        """Raise a `UserError` where doing this stage would throw away a result or a checkpoint of other settings or files.

        `remedy` is the option that allows it.
        """
        check_only_ours(self, stage)
        loss = self.would_lose(stage)
        if loss:
            raise UserError(
                f"{self.path / stage} holds {loss}; add {remedy} to make it again, or choose another folder with --out"
            )

    def would_lose(self, stage: str) -> str | None:
        """What doing this stage would throw away, and why; None where what is damaged, or rests on a replaced result, is made again."""
        folder = self.path / stage
        finished = read_finished(folder)
        if finished == OF_ANOTHER_VERSION:
            return f"a result, but {self._own_change(stage)}"
        if finished and not damage(folder, finished):
            holds, before = "a finished result", finished.inputs
        elif not finished and self.is_interrupted(stage) and has_checkpoints(folder):
            holds, before = "an interrupted training", inputs_of_unfinished(folder)
        else:
            return None
        now = self.inputs(stage)
        changes = changed_inputs(before, now | {key: before.get(key) for key in now if RESULT_OF in key})
        return f"{holds}, but {changes[0]}" if changes else None

    # Writing

    def writing(self, stage: str) -> AbstractContextManager[dict[str, float]]:
        """Do the work of a stage inside, and put its numbers into the dictionary; the result counts when the block ends well."""
        return (in_place if STAGES[stage].resumable else in_a_fresh_folder)(self, stage)

    def is_interrupted(self, stage: str) -> bool:
        """Whether a resumable stage was interrupted, by Ctrl-C, a kill or an error, and can be continued."""
        folder = self.path / stage
        return (folder / UNFINISHED).exists() and not (folder / FINISHED).exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing into the same run, and finish what a killed one was about to."""
        with lock_folder(self.path):
            recover(self.path)
            self.write_metrics()
            yield
