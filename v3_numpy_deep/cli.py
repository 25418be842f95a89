"""The commands of this level: which of its functions is which stage.

Everything else is the same for every level (`shared_data/command_line.py`).

    uv run v3 run --config smoke
"""

from shared_data.command_line import build_app

app = build_app(
    "v3",
    "Level 3, the deep dive: NumPy, its own autograd, down to the derivative.",
    stages={
        "data": "v3_numpy_deep.data_pipeline.prepare:prepare_documents",
        "tokenizer": "v3_numpy_deep.data_pipeline.prepare:prepare_tokens",
        "pretrain": "v3_numpy_deep.pretrain.train:pretrain",
        "sft": "v3_numpy_deep.finetune.sft_train:sft",
        "reward": "v3_numpy_deep.align.rm_train:reward",
        "dpo": "v3_numpy_deep.align.dpo_train:dpo",
        "ppo": "v3_numpy_deep.align.ppo_train:ppo",
        "grpo": "v3_numpy_deep.align.grpo_train:grpo",
        "evaluate": "v3_numpy_deep.evaluation.evaluate:evaluate",
        "benchmark": "v3_numpy_deep.evaluation.benchmarks.harness:benchmark",
        "generate": "v3_numpy_deep.inference.generate:generate_samples",
    },
)

if __name__ == "__main__":
    app()
