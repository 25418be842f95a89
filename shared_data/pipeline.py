"""Run the stages in order, skipping those whose inputs have not changed, as `make` would.

v2 run                      every stage that is not current
v2 run --from pretrain      that stage and all after it again
v2 run --only evaluate      one stage, if those before it are current
v2 run --force              everything again
"""

import importlib
import math
import time
from collections.abc import Callable
from typing import Any

from shared_data.errors import StageError, UserError, is_out_of_memory
from shared_data.finished import FINISHED
from shared_data.needs import check_needs
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.stages import STAGES, left_out
from shared_data.summary import print_current, print_heading, print_left_out, print_rows, print_summary

# What the settings are called whose size decides how much memory a stage takes.
_SIZES = (
    "batch_size",
    "sequence_length",
    "max_length",
    "num_generations",
    "max_new_tokens",
    "completion_length",
)

StageFunction = Callable[[Settings, RunFolder], dict[str, float]]


def load_function(reference: str) -> Callable[..., Any]:
    """The function that `module:function` names; the module is imported only now."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def run_stage(stage: str, functions: dict[str, str], run: RunFolder, force: bool = False) -> bool:
    """Do one stage if it is not current, record its numbers and print its summary; tell whether it was done.

    Raises `UserError` where an earlier stage is missing or was made with other settings, where a result of other settings
    would be thrown away without `force`, and where something is missing that the stage needs.
    """
    run.require(stage)
    if not force:
        if run.is_current(stage):
            print_current(stage, run)
            return False
        run.protect(stage)
    check_needs(run, [stage])
    _do(stage, functions, run, force)
    return True


def run_pipeline(
    functions: dict[str, str],
    run: RunFolder,
    *,
    first: str | None = None,
    only: str | None = None,
    force: bool = False,
) -> list[str]:
    """Do every stage of a level that is not current, in order; returns the names of those that were done.

    functions: `module:function` by stage.
    first: do this stage and all after it again, current or not.
    only: do this one stage and no other.
    force: do every stage again.

    What `run_stage` refuses is refused here before the first stage starts.
    """
    for name in (first, only):
        if name is not None and name not in functions:
            raise UserError(f"there is no stage {name!r}; the stages are {', '.join(functions)}")
    if only:
        return [only] if run_stage(only, functions, run, force) else []
    without = left_out(run.settings)
    names = [stage for stage in STAGES if stage in functions and stage not in without]
    if first in without:
        raise UserError(f"the stage {first} is left out: {without[first]}")
    again = names if force else names[names.index(first) :] if first else []
    for name in names:
        if name not in again:
            run.protect(name, remedy=f"--from {name}")
    to_do = [name for name in names if name in again or not run.is_current(name)]
    level = functions[names[0]].partition(".")[0]
    check_needs(run, to_do, lambda path: load_function(f"{level}:load_tokenizer")(path))
    done = []
    for name in names:
        if name in again or not run.is_current(name):
            _do(name, functions, run, name in again)
            done.append(name)
        else:
            print_current(name, run)
    print_left_out({name: reason for name, reason in without.items() if name in functions})
    return done


def _do(stage: str, functions: dict[str, str], run: RunFolder, force: bool) -> None:
    """One stage, whatever was there before."""
    settings, started = run.settings, time.perf_counter()
    if force and STAGES[stage].resumable:  # from the beginning, not from its last checkpoint
        section = getattr(settings, stage).model_copy(update={"resume_from_checkpoint": False})
        settings = settings.model_copy(update={stage: section})
    reason = run.why_not_current(stage)
    print_heading(stage, run, force)
    if reason and (run.path / stage / FINISHED).is_file():
        print_rows([("made again", reason)])
    try:
        # The imports of the function are part of what the user waits for.
        function: StageFunction = load_function(functions[stage])
        with run.writing(stage) as metrics:
            metrics.update(_numbers(function(settings, run)))
            metrics.setdefault("seconds", round(time.perf_counter() - started, 3))
    except Exception as error:
        if is_out_of_memory(error):
            raise StageError(f"out of memory in {stage}; {_smaller(stage, run)}") from error
        raise
    print_summary(stage, metrics, run)


def _smaller(stage: str, run: RunFolder) -> str:
    """Which settings of a stage lower its memory."""
    section = getattr(run.settings, stage)
    names = [
        name
        for name in type(section).model_fields
        if name.endswith(_SIZES) and getattr(section, name) is not None
    ]
    return f"lower {', '.join(f'{stage}.{name}' for name in names) or 'the size of the data'} or the size of the model"


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """What JSON can hold of a stage's numbers: without those that are unknown (None) or not finite."""
    return {
        key: float(value) if not isinstance(value, int) else value
        for key, value in metrics.items()
        if value is not None and math.isfinite(value)
    }
