"""What surrounds an evaluation: the settings of the stage, which model it was, where the scores go.

section, files = stage_settings(settings, run, None)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared_data.benchmarks.evaluation import Files
from shared_data.benchmarks.results import check_results_file, write_results
from shared_data.benchmarks.scores import Scores
from shared_data.benchmarks.tasks import find_tasks
from shared_data.finished import sizes_and_times
from shared_data.runs import RunFolder
from shared_data.settings import BenchmarkSettings, Settings

SCORES, ITEMS = "scores.json", "items.jsonl"  # in the folder of the stage


def stage_settings(
    settings: Settings, run: RunFolder, files: Files | None
) -> tuple[BenchmarkSettings, Files]:
    """The settings and files of the command, or (without files) of the stage, which keeps its results in the run.

    The stage leaves the story world's tasks out where a model was trained on another corpus.
    """
    section = settings.benchmark
    if files is not None:
        check_results_file(files.json, files.force)
        return section, files
    folder = run.stage("benchmark")
    names = [task.name for task in find_tasks(section.tasks) if _belongs(task.is_story_world, settings)]
    own = section.model_copy(update={"tasks": [name for name in section.tasks if name in names or not names]})
    return own, Files(items=folder / ITEMS, json=folder / SCORES)


def identity(model: Path) -> Any:
    """What changes when a model does: the sizes and times of its files."""
    if model.is_file():
        return str(model.resolve()), model.stat().st_size, model.stat().st_mtime_ns
    return str(model.resolve()), sizes_and_times(model)


def keep_scores(scores: Mapping[str, Scores], model: str, files: Files) -> dict[str, float]:
    """Write the scores where they are wanted, and return them flat, as metrics.json has them."""
    if files.json is not None:
        write_results(files.json, model, scores)
    return {
        f"{task}_{metric}": value
        for task, of_task in scores.items()
        for metric, value in of_task.items()
        if value is not None
    }
