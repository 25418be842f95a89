"""The stage and the command `benchmark`: lm-evaluation-harness on the model.

`lm_eval.simple_evaluate` does the same in one call, and also asks git and the system for their versions. The library keeps no finished
items of an evaluation that is killed; that starts again.

    v1 benchmark --model sft --tasks story_world,arc_easy --data arc_easy=arc.jsonl
"""

import contextlib
import io
import sys
from pathlib import Path

from lm_eval import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from shared_data.benchmarks.evaluation import Files
from shared_data.benchmarks.readers import num_fewshot
from shared_data.benchmarks.stage import keep_scores, library_scores, new_items_file, stage_settings
from shared_data.benchmarks.tasks import find_tasks
from shared_data.errors import UserError
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.tokenizer.tokenizer import NO_TEMPLATE
from v1_quick.evaluation.benchmark_tasks import task_configs
from v1_quick.inference.loading import load_with_tokenizer


def benchmark(
    settings: Settings, run: RunFolder, model_name: str | Path = "sft", files: Files | None = None
) -> dict[str, float]:
    """Scores of a model on the tasks of `[benchmark]`, flat: `story_world_acc`."""
    section, files = stage_settings(settings, run, files)
    tasks, write_items = find_tasks(section.tasks), new_items_file(files)
    configs = task_configs(tasks, section, files, settings.data)
    model, tokenizer = load_with_tokenizer(settings, run, model_name)
    if section.apply_chat_template and tokenizer.chat_template is None:
        raise UserError(NO_TEMPLATE)
    bars = sys.stderr if sys.stderr.isatty() else io.StringIO()
    known = any(not task.is_story_world for task in tasks)  # an index of thousands of tasks
    with contextlib.redirect_stderr(bars):
        try:
            loaded = TaskManager(include_defaults=known).load(configs)
        except ConnectionError as error:
            raise UserError(f"{error}; connect, or name the data with --data TASK=PATH") from error
        for task in tasks:
            loaded["tasks"][task.name].set_config("num_fewshot", num_fewshot(task, section))
            loaded["tasks"][task.name].set_fewshot_seed(section.seed)
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=section.batch_size)
        template = section.apply_chat_template
        results = evaluate(
            lm, loaded, limit=section.limit, apply_chat_template=template, fewshot_as_multiturn=template
        )
    write_items(results["samples"])
    return keep_scores(library_scores(section.tasks, tasks, results["results"]), str(model_name), files)
