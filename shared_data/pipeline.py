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

from shared_data.errors import UserError
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.stages import STAGES
from shared_data.summary import print_current, print_heading, print_summary

StageFunction = Callable[[Settings, RunFolder], dict[str, float]]


def load_function(reference: str) -> Callable[..., Any]:
    """The function that `module:function` names; the module is imported only now."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def run_stage(
    stage: str, functions: dict[str, str], settings: Settings, run: RunFolder, force: bool = False
) -> bool:
    """Do one stage if it is not current, record its numbers and print its summary; tell whether it was done.

    Raises `UserError` where an earlier stage is missing or was made with other settings.
    """
    run.require(stage)
    run.metrics()  # refuses a damaged metrics.json before any work is done, not after it
    if not force and run.is_current(stage):
        print_current(stage, run)
        return False
    if not force:
        run.protect_interrupted(stage)
    elif STAGES[stage].resumable:  # from the beginning, not from its last checkpoint
        section = getattr(settings, stage).model_copy(update={"resume": False})
        settings = settings.model_copy(update={stage: section})
    print_heading(stage, run, force)
    started = time.perf_counter()
    function: StageFunction = load_function(
        functions[stage]
    )  # its imports are part of what the user waits for
    with run.writing(stage):
        metrics = _numbers(function(settings, run))
        metrics.setdefault("seconds", round(time.perf_counter() - started, 3))
    run.record(stage, metrics)
    print_summary(stage, metrics, run)
    return True


def run_pipeline(
    functions: dict[str, str],
    settings: Settings,
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
    """
    for name in (first, only):
        if name is not None and name not in functions:
            raise UserError(f"there is no stage {name!r}; the stages are {', '.join(functions)}")
    names = [only] if only else [stage for stage in STAGES if stage in functions]
    done = []
    for name in names:
        again = force or (first is not None and names.index(name) >= names.index(first))
        if run_stage(name, functions, settings, run, force=again):
            done.append(name)
    return done


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """What JSON can hold of a stage's numbers: without those that are unknown (None) or not finite."""
    return {
        key: float(value) if not isinstance(value, int) else value
        for key, value in metrics.items()
        if value is not None and math.isfinite(value)
    }
