"""The commands of this level: which of its functions is which stage.

Everything else is the same for every level (`shared_data/command_line.py`).

    uv run v1 run --config smoke
"""

import os

from shared_data.command_line import build_app

# The libraries of this level draw bars of their own on stderr; every level shows its progress in the same way instead.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

app = build_app(
    "v1",
    "Level 1, the reference: each stage is the library call a practitioner would make.",
    stages={
        "data": "v1_quick.data_pipeline.prepare:prepare_documents",
        "tokenizer": "v1_quick.data_pipeline.prepare:prepare_tokens",
        "pretrain": "v1_quick.pretrain.train:pretrain",
        "sft": "v1_quick.finetune.sft_train:sft",
        "evaluate": "v1_quick.evaluation.evaluate:evaluate",
        "generate": "v1_quick.inference.generate:generate_samples",
    },
)

if __name__ == "__main__":
    app()
