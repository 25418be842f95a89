"""Tokens per second of the stages that tune and align: levels 2 and 3 against trl's trainers, tiny model, the same settings.

A run is prepared once (a model that was hardly trained; what it says does not change the speed). Then each level does each stage
for a few steps, in rounds that take turns, as a user's command would; what counts is the best round of each, by the seconds spent
in steps, so that neither imports nor exams count.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.tuning
"""

import contextlib
import importlib
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

from shared_data.pipeline import run_stage
from shared_data.runs import RunFolder
from shared_data.settings import load_settings

LEVELS = {"v1": "v1_quick", "v2": "v2_handwritten", "v3": "v3_numpy_deep"}
STAGES = ("sft", "reward", "dpo", "ppo", "grpo")
STEPS = {"sft": 12, "reward": 12, "dpo": 12, "ppo": 4, "grpo": 4}
TARGET = 1.5
PREPARED = [
    *(
        "data.max_megabytes=1.0",
        "pretrain.max_steps=2",
        "sft.conversations=300",
        "reward.pairs=200",
        "dpo.pairs=200",
    ),
    *("reward.eval_pairs=2", "dpo.eval_pairs=2", "sft.eval_questions=2", "sft.warmup_steps=0"),
    *(f"{stage}.test_prompts=2" for stage in ("dpo", "ppo", "grpo")),
    *(f"{stage}.max_new_tokens=64" for stage in ("dpo", "ppo", "grpo")),
    *(f"{stage}.{name}=0" for stage in STAGES for name in ("eval_every", "checkpoint_every")),
    *(f"{stage}.learning_rate=1e-9" for stage in STAGES),
    *(f"{stage}.steps={steps}" for stage, steps in STEPS.items()),
    *(f"{stage}.logging_steps=1" for stage in STAGES),
]


def run(rounds: int = 2) -> list[dict[str, Any]]:
    """Rows for the table of `python -m tests.benchmarks`."""
    importlib.import_module("v1_quick.cli")  # keeps the libraries of level 1 quiet
    settings = load_settings("tiny", PREPARED)
    speeds: dict[tuple[str, str], float] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        prepared = {level: Path(folder, level) for level in LEVELS}
        for level, path in prepared.items():
            for stage in ("data", "tokenizer", "pretrain"):
                run_stage(stage, functions(level), settings, RunFolder(level, settings, path))
        for _ in range(rounds):
            for stage in STAGES:
                for level, path in prepared.items():
                    at = RunFolder(level, settings, path)
                    shutil.rmtree(path / stage, ignore_errors=True)
                    run_stage(stage, functions(level), settings, at, force=True)
                    key = stage, level
                    speeds[key] = max(speeds.get(key, 0.0), at.metrics()[stage]["tokens_per_second"])
    return [
        {
            "what": f"{stage}, tokens/s, {level} ÷ v1 (trl)",
            f"{level} tokens/s": speeds[stage, level],
            "v1 tokens/s": speeds[stage, "v1"],
            "ratio": speeds[stage, level] / speeds[stage, "v1"],
            "target": TARGET if level == "v2" else "",
        }
        for stage in STAGES
        for level in ("v2", "v3")
    ]


def functions(level: str) -> dict[str, str]:
    """The stage functions of a level, as its `cli.py` names them."""
    names = {
        "data": "data_pipeline.prepare:prepare_documents",
        "tokenizer": "data_pipeline.prepare:prepare_tokens",
        "pretrain": "pretrain.train:pretrain",
        "sft": "finetune.sft_train:sft",
        "reward": "align.rm_train:reward",
        **{stage: f"align.{stage}_train:{stage}" for stage in ("dpo", "ppo", "grpo")},
    }
    return {stage: f"{LEVELS[level]}.{name}" for stage, name in names.items()}


def main() -> None:
    """Print the comparison."""
    for row in run():
        print(
            "  ".join(
                f"{key} {value:,.2f}" if isinstance(value, float) else value for key, value in row.items()
            )
        )


if __name__ == "__main__":
    main()
