"""The trainings of a comparison: one run folder a choice (and seed), with corpus and tokenizer made once and shared by all.

    runs/v2/tiny/compare/
      compare.json  compare.md  compare.svg
      num_key_value_heads=1/     an ordinary run folder: data/ tokenizer/ pretrain/ settings.toml

What a choice needs of corpus and tokenizer is linked from another choice, or from the run of the configuration, where that has a
result of the same inputs; so it takes no space twice, and a choice that varies the tokenizer has its own.

    trials = plan("v2", "tiny", [], read_choices(["pretrain.optim=adamw,muon"], []), seeds=[], root=Path("runs/v2/tiny/compare"))
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shared_data.comparison.choices import NEEDED, TRAINED, Choice, folder_of
from shared_data.errors import UserError
from shared_data.files import sweep
from shared_data.finished import damage, read_finished
from shared_data.model_files.config import ModelConfig
from shared_data.needs import check_needs
from shared_data.pipeline import run_stage
from shared_data.run_writing import SETTINGS, check_only_ours
from shared_data.runs import RunFolder
from shared_data.settings import Settings, load_settings


@dataclass(frozen=True)
class Trial:
    """One training: a choice with a seed."""

    name: str  # of the choice; where it has several, with the seed
    choice: Choice
    run: RunFolder

    @property
    def is_finished(self) -> bool:
        """Whether it is trained with the settings of now."""
        return self.run.is_current(TRAINED)


def plan(
    level: str, config: str, assignments: list[str], choices: list[Choice], seeds: list[int], root: Path
) -> list[Trial]:
    """The trainings in the order of the choices, each with every seed; without seeds, with that of the settings.

    assignments: of `--set`, for all choices.  root: the folder of the comparison.
    Raises `UserError` for whatever can be known to fail before the first one begins.
    """
    if (root / SETTINGS).is_file():
        raise UserError(f"{root} is the folder of a run, not of a comparison; choose another one with --out")
    configuration = load_settings(config)
    made: list[Settings] = []
    trials: list[Trial] = []
    for choice in choices:
        settings = choice.settings(config, assignments)
        _check_sizes(choice, settings)
        if settings in made:
            other = choices[made.index(settings)].name
            raise UserError(
                f"the choices {other!r} and {choice.name!r} have the same settings; take one away"
            )
        made.append(settings)
        if seeds and "pretrain.seed" in choice.keys:
            raise UserError(f"choice {choice.name!r} sets pretrain.seed; leave that out, or --seeds")
        for name, values in _with_seeds(choice.name, settings, seeds):
            run = RunFolder(level, values, root / folder_of(name))
            run.configuration = configuration
            trials.append(Trial(name, choice, run))
    for trial in trials:
        check_needs(trial.run, (*NEEDED, TRAINED))
        for stage in (*NEEDED, TRAINED):
            check_only_ours(trial.run, stage)
    return trials


def train(trial: Trial, stages: dict[str, str], root: Path, force: bool = False) -> None:
    """Train one, or continue its interrupted training, if that is not done yet with these settings.

    stages: `module:function` by stage, of the level.  root: the folder of the comparison.  force: train it again in any case.
    Raises `StageError` where the training diverges or memory runs out.
    """
    with trial.run.locked():
        for stage in NEEDED:
            if not trial.run.is_current(stage) and not _link_from_another(trial.run, stage, root):
                _make(stage, stages, trial.run)
        _make(TRAINED, stages, trial.run, force)


def _check_sizes(choice: Choice, settings: Settings) -> None:
    """Raise `UserError` for an architecture that cannot be built. The tokenizer, which decides V, may not be there yet."""
    try:
        ModelConfig.from_settings(settings.model, settings.tokenizer.vocab_size)
    except UserError as error:
        raise UserError(f"choice {choice.name!r}: {error}") from error


def _with_seeds(name: str, settings: Settings, seeds: list[int]) -> Iterator[tuple[str, Settings]]:
    """Settings with each seed of pretraining, and a name that tells it; without seeds, as they are."""
    if not seeds:
        yield name, settings
    for seed in seeds:
        section = settings.pretrain.model_copy(update={"seed": seed})
        yield f"{name}, seed {seed}", settings.model_copy(update={TRAINED: section})


def _make(stage: str, stages: dict[str, str], run: RunFolder, force: bool = False) -> None:
    """Do a stage if need be, also where its last result is of other settings: a comparison shows one set of them."""
    run_stage(stage, stages, run, force or run.would_lose(stage) is not None)


def _link_from_another(run: RunFolder, stage: str, root: Path) -> bool:
    """Take the result of a stage from a run that has one of the same inputs; tell whether there is one."""
    inputs, folder = run.inputs(stage), run.path / stage
    siblings = sorted(path for path in root.iterdir() if path.is_dir())
    for other in (RunFolder(run.level, run.settings).path, *siblings):
        record = read_finished(other / stage)
        if record is None or other == run.path or record.inputs != inputs:
            continue
        temporary = run.path / f".{stage}.linked.tmp"
        sweep(run.path)
        with suppress(OSError):  # it is being replaced at this moment: make an own one
            shutil.copytree(other / stage, temporary, copy_function=_link)
        if damage(temporary, record) is None:
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(temporary, folder)
            return True
    sweep(run.path)
    return False


def _link(source: str, target: str) -> None:
    """A file under a second name; a copy where the disk has no links, or it is another disk. Files of a run are replaced, not changed."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
