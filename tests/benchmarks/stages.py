"""Seconds per step of every stage that trains: levels 2 and 3 against the trainers of transformers and trl, the settings of `tiny`.

Each level does each stage as a user's command would, in rounds that take turns, once with few steps and once with more. The difference
is the time of the steps alone: neither imports nor evaluations count, and the best round does.

    OMP_NUM_THREADS=2 python -m tests.benchmarks stages
"""

import contextlib
import io
import shutil
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from shared_data.pipeline import run_stage
from shared_data.runs import RunFolder
from shared_data.settings import load_settings

LEVELS = {"v1": "v1_quick", "v2": "v2_handwritten", "v3": "v3_numpy_deep"}
FUNCTIONS = {
    "data": "data_pipeline.prepare:prepare_documents",
    "tokenizer": "data_pipeline.prepare:prepare_tokens",
    "pretrain": "pretrain.train:pretrain",
    "sft": "finetune.sft_train:sft",
    "reward": "align.rm_train:reward",
    **{stage: f"align.{stage}_train:{stage}" for stage in ("dpo", "ppo", "grpo")},
}
STEPS = {"pretrain": 20, "sft": 20, "reward": 10, "dpo": 10, "ppo": 3, "grpo": 3}  # that are timed
ALIGNMENT = ("dpo", "ppo", "grpo")
TARGETS = {"v2": dict.fromkeys(("pretrain", *ALIGNMENT, "reward"), 1.5), "v3": {"pretrain": 0.8}}
SETTINGS = [
    *("data.max_megabytes=1.0", "sft.conversations=400", "reward.pairs=200", "dpo.pairs=200"),
    *("reward.eval_pairs=2", "sft.eval_questions=2", "dpo.eval_pairs=2", "evaluate.batch_size=4"),
    *(f"{stage}.eval_prompts=2" for stage in ALIGNMENT),
    *(f"{stage}.max_completion_length=64" for stage in ALIGNMENT),
    *(f"{stage}.{name}=0" for stage in STEPS for name in ("eval_steps", "save_steps", "warmup_steps")),
    *(f"{stage}.learning_rate=1e-9" for stage in STEPS),
    *("pretrain.sample_steps=0", "pretrain.eval_batches=1", "sft.eval_batches=1"),
]


def run(rounds: int = 2) -> list[dict[str, Any]]:
    """Rows for the table of `python -m tests.benchmarks`."""
    import_module("v1_quick.cli")  # keeps the libraries of level 1 quiet
    seconds: dict[tuple[str, str], float] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for level in LEVELS:
            for stage in ("data", "tokenizer", *STEPS):
                do(level, stage, Path(folder, level), 1)
        for _ in range(rounds):
            for stage, steps in STEPS.items():
                for level in LEVELS:
                    few, more = (do(level, stage, Path(folder, level), count) for count in (1, 1 + steps))
                    best = seconds.get((stage, level), float("inf"))
                    seconds[stage, level] = min(best, (more - few) / steps)
    return [
        {
            "what": f"{stage}, steps per second, {level} ÷ v1 (transformers, trl)",
            "seconds per step": seconds[stage, level],
            "v1 seconds per step": seconds[stage, "v1"],
            "ratio": seconds[stage, "v1"] / seconds[stage, level],
            "target": TARGETS[level].get(stage, ""),
        }
        for stage in STEPS
        for level in ("v2", "v3")
    ]


def do(level: str, stage: str, folder: Path, steps: int) -> float:
    """Seconds of one stage with so many steps, in a copy of the run whose earlier stages are finished."""
    counts = {name: steps if name == stage else 1 for name in STEPS}
    overrides = [f"{name}.max_steps={count}" for name, count in counts.items()]
    settings = load_settings("tiny", [*SETTINGS, *overrides])
    functions = {name: f"{LEVELS[level]}.{place}" for name, place in FUNCTIONS.items()}
    copy = folder.with_name(f"{folder.name}-{stage}") if steps > 1 else folder
    if copy != folder:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
    started = time.perf_counter()
    run_stage(stage, functions, RunFolder(level, settings, copy), force=True)
    return time.perf_counter() - started
