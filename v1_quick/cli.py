"""The commands of this level: which of its functions is which stage.

Everything else is the same for every level (`shared_data/command_line.py`).

    uv run v1 run --config smoke
"""

import v1_quick.quiet  # noqa: F401
from shared_data.command_line import build_app

app = build_app(
    "v1",
    "Level 1: each stage is the library call a practitioner would make.",
    stages={
        "data": "v1_quick.data_pipeline.prepare:prepare_documents",
        "tokenizer": "v1_quick.data_pipeline.prepare:prepare_tokens",
        "pretrain": "v1_quick.pretrain.train:pretrain",
        "sft": "v1_quick.finetune.sft_train:sft",
        "reward": "v1_quick.align.rm_train:reward",
        "dpo": "v1_quick.align.dpo_train:dpo",
        "ppo": "v1_quick.align.ppo_train:ppo",
        "grpo": "v1_quick.align.grpo_train:grpo",
        "evaluate": "v1_quick.evaluation.evaluate:evaluate",
        "benchmark": "v1_quick.evaluation.benchmark:benchmark",
        "generate": "v1_quick.inference.generate:generate_samples",
    },
)

if __name__ == "__main__":
    app()
