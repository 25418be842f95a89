"""Tasks as lm-evaluation-harness takes them: its own by name, the same on local data, and the story world's as configurations.

task_configs(find_tasks(["story_world"]), section, Files(), settings.data)
"""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, DatasetDict

from shared_data.benchmarks.evaluation import Files
from shared_data.benchmarks.readers import SPLITS, data_paths, read_splits
from shared_data.benchmarks.tasks import Task
from shared_data.settings import BenchmarkSettings, DataSettings

# Of the story world's tasks, what is asked for and what is right; the names are columns.
STORY_WORLD: dict[str, dict[str, Any]] = {
    "story_world": {
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
    },
    "story_world_questions": {
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "reply",
    },
    "story_world_stories": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
    },
}


def task_configs(
    tasks: Sequence[Task], section: BenchmarkSettings, files: Files, data: DataSettings
) -> list[str | dict[str, Any]]:
    """What `simple_evaluate` takes as `tasks`; a group lets a configuration change what a known task has."""
    configs: list[str | dict[str, Any]] = []
    paths = data_paths(files.data)
    for task in tasks:
        path = paths.get(task.name)
        if path is None and not task.is_story_world:
            configs.append(task.name)
            continue
        records, known = read_splits(task, section, path, data)
        splits = {field: getattr(known, field) for field in SPLITS}
        local = {"task": task.name, "custom_dataset": dataset_of(records), **splits}
        if task.is_story_world:
            configs.append({**STORY_WORLD[task.name], **measured(task), **local})
        else:
            configs.append({"group": f"{task.name} on local data", "task": [local]})
    return configs


def dataset_of(splits: dict[str, list[dict[str, Any]]]) -> Any:
    """A function that returns these records as a dataset, as `custom_dataset` wants it."""
    dataset = DatasetDict({name: Dataset.from_list(records) for name, records in splits.items()})
    return lambda **_: dataset


def measured(task: Task) -> dict[str, Any]:
    """The metrics of a task, and how text is generated and read for them."""
    config: dict[str, Any] = {"metric_list": [{"metric": metric} for metric in task.metrics]}
    if task.generation is not None:
        until, limit = list(task.generation.until), task.generation.max_new_tokens
        config["generation_kwargs"] = {"until": until, "max_gen_toks": limit, "do_sample": False}
        config["filter_list"] = [
            {
                "name": how.name,
                "filter": [
                    {"function": "regex", "regex_pattern": how.pattern, "group_select": how.index},
                    {"function": "take_first"},
                ],
            }
            for how in task.generation.extractions.values()
        ]
    return config
