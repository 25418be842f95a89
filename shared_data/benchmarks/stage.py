"""What surrounds an evaluation: the settings of the stage, which model it was, where the scores go.

section, files = stage_settings(settings, run, None)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared_data.benchmarks.evaluation import Files
from shared_data.benchmarks.readers import check_data_is_used, data_paths
from shared_data.benchmarks.results import check_results_file, write_results
from shared_data.benchmarks.scores import WITHOUT_ERROR, Scores, in_order, with_groups
from shared_data.benchmarks.tasks import Task, find_tasks
from shared_data.errors import UserError
from shared_data.files import atomic_write, json_bytes
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
        check_apart(files)
        check_data_is_used(data_paths(files.data), find_tasks(section.tasks))
        return section, files
    folder = run.stage("benchmark")
    tasks = find_tasks(section.tasks)
    elsewhere = {task.name for task in tasks if task.is_story_world and settings.data.source != "story_world"}
    own = section.model_copy(update={"tasks": [name for name in section.tasks if name not in elsewhere]})
    return own, Files(items=folder / ITEMS, json=folder / SCORES)


def check_apart(files: Files) -> None:
    """Raise `UserError` where two of the files that are read and written are one."""
    written = {"--items": files.items, "--json": files.json}
    read = {f"--data {name}": path for name, path in data_paths(files.data).items()}
    seen: dict[Path, str] = {path.resolve(): option for option, path in read.items()}
    for option, path in written.items():
        if path is None:
            continue
        if other := seen.get(path.resolve()):
            raise UserError(f"{option} and {other} are the same file, {path}; name another one")
        seen[path.resolve()] = option


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


def library_scores(
    names: Sequence[str], tasks: Sequence[Task], results: Mapping[str, Mapping[str, Any]]
) -> dict[str, Scores]:
    """lm-evaluation-harness's results in our form: `acc,none` is `acc`, and GSM8K's two filters are two metrics."""
    scores: dict[str, Scores] = {}
    for task in tasks:
        found, of_task = results[task.name], Scores()
        for metric in task.metrics:
            extraction = task.generation.extractions[metric].name if task.generation else "none"
            name = "exact_match" if task.generation else metric
            of_task[metric] = float(found[f"{name},{extraction}"])
            error = found.get(f"{name}_stderr,{extraction}")
            if metric not in WITHOUT_ERROR:
                of_task[f"{metric}_stderr"] = None if isinstance(error, str) else error
        scores[task.name] = in_order(of_task) | {"n": found["sample_len"]}
    return with_groups(names, scores)


def new_items_file(files: Files) -> Callable[[Mapping[str, Iterable[Mapping[str, Any]]]], None]:
    """A function that writes lm-evaluation-harness's samples; raises `UserError` at once where a file would be overwritten."""
    path = files.items
    if path is not None and path.exists() and not files.force:
        raise UserError(
            f"{path} is there already; name another file with --items, or add --force to replace it"
        )

    def write(samples: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
        if path is not None:
            with atomic_write(path) as file:
                for task, lines in samples.items():
                    file.writelines(json_bytes({"task": task, **line}) for line in lines)

    return write
