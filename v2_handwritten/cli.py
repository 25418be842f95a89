"""The commands of this level: which of its functions is which stage.

Everything else is the same for every level (`shared_data/command_line.py`).

    uv run v2 run --config smoke
"""

from shared_data.command_line import build_app
from shared_data.model_commands import add_look

app = build_app(
    "v2",
    "Level 2, the main line: every algorithm by hand, in PyTorch.",
    stages={
        "data": "v2_handwritten.data_pipeline.prepare:prepare_documents",
        "tokenizer": "v2_handwritten.data_pipeline.prepare:prepare_tokens",
        "pretrain": "v2_handwritten.pretrain.train:pretrain",
        "sft": "v2_handwritten.finetune.sft_train:sft",
        "reward": "v2_handwritten.align.rm_train:reward",
        "dpo": "v2_handwritten.align.dpo_train:dpo",
        "ppo": "v2_handwritten.align.ppo_train:ppo",
        "grpo": "v2_handwritten.align.grpo_train:grpo",
        "evaluate": "v2_handwritten.evaluation.evaluate:evaluate",
        "generate": "v2_handwritten.inference.generate:generate_samples",
    },
)
inspection = "v2_handwritten.inference.inspection"  # a tool of this level only
add_look(app, "v2", f"{inspection}:look_command", f"{inspection}:patterns_command")

if __name__ == "__main__":
    app()
