"""The stage and the command `benchmark`: scores on multiple choice, generated answers and perplexity, comparable with published ones.

Prompts, few-shot examples and metrics are those of lm-evaluation-harness; what they have to do with each other is
shared_data/benchmarks/evaluation.py. This level brings its log-likelihoods and its `generate`.

Level 1: `lm_eval.simple_evaluate`. Level 2: the same over torch.
Theory: v2_handwritten/evaluation/benchmarks/harness.md.

    v3 benchmark --model sft --tasks story_world,arc_easy --data arc_easy=arc.jsonl
"""

from pathlib import Path

from shared_data.benchmarks.evaluation import Files, evaluate_tasks
from shared_data.benchmarks.stage import identity, keep_scores, stage_settings
from shared_data.model_names import find_model
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v3_numpy_deep.evaluation.benchmarks.log_likelihoods import log_likelihoods
from v3_numpy_deep.inference.generate import generate
from v3_numpy_deep.inference.loading import load_with_tokenizer


def benchmark(
    settings: Settings, run: RunFolder, model_name: str | Path = "sft", files: Files | None = None
) -> dict[str, float]:
    """Scores of a model on the tasks of `[benchmark]`, flat: `story_world_acc`. `files` are those of the command, not of the stage.

    Raises `UserError` for an unknown task, malformed data, or a model that is missing or damaged.
    """
    section, files = stage_settings(settings, run, files)
    model, tokenizer = load_with_tokenizer(settings, run, model_name)
    model_id = identity(find_model(run, model_name).folder)
    scores = evaluate_tasks(
        log_likelihoods, generate, model, tokenizer, section, settings.data, files, model_id
    )
    return keep_scores(scores, str(model_name), files)
