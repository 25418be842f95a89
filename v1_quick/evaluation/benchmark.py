"""The stage and the command `benchmark`: lm-evaluation-harness on the model.

It keeps no finished items of an evaluation that is killed; that starts again.

    v1 benchmark --model sft --tasks story_world,arc_easy --data arc_easy=arc.jsonl
"""

from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from shared_data.benchmarks.evaluation import Files
from shared_data.benchmarks.stage import keep_scores, library_scores, new_items_file, stage_settings
from shared_data.benchmarks.tasks import find_tasks
from shared_data.errors import UserError
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v1_quick.evaluation.benchmark_tasks import task_configs
from v1_quick.inference.loading import load_with_tokenizer


def benchmark(
    settings: Settings, run: RunFolder, model_name: str | Path = "sft", files: Files | None = None
) -> dict[str, float]:
    """Scores of a model on the tasks of `[benchmark]`, flat: `story_world_acc`."""
    section, files = stage_settings(settings, run, files)
    tasks, write_items = find_tasks(section.tasks), new_items_file(files)
    configs = task_configs(tasks, section, files, settings.data)
    own = all(task.is_story_world for task in tasks)
    model, tokenizer = load_with_tokenizer(settings, run, model_name)
    try:
        results = simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=section.batch_size),
            tasks=configs,
            num_fewshot=section.num_fewshot,
            limit=section.limit,
            fewshot_random_seed=section.seed,
            apply_chat_template=section.apply_chat_template,
            task_manager=TaskManager(include_defaults=not own),  # an index of thousands of tasks
        )
    except ConnectionError as error:
        raise UserError(f"{error}; connect, or name the data with --data TASK=PATH") from error
    write_items(results["samples"])
    return keep_scores(library_scores(section.tasks, tasks, results["results"]), str(model_name), files)
