"""The commands of this level: which of its functions is which stage.

Everything else is the same for every level (`shared_data/command_line.py`).

    uv run v2 run --config smoke
"""

from shared_data.command_line import build_app
from shared_data.comparison.command import add_compare
from shared_data.model_commands import add_look

STAGES = {
    "data": "v2_handwritten.data_pipeline.prepare:prepare_documents",
    "tokenizer": "v2_handwritten.data_pipeline.prepare:prepare_tokens",
    "pretrain": "v2_handwritten.pretrain.train:pretrain",
    "sft": "v2_handwritten.finetune.sft_train:sft",
    "reward": "v2_handwritten.align.rm_train:reward",
    "dpo": "v2_handwritten.align.dpo_train:dpo",
    "ppo": "v2_handwritten.align.ppo_train:ppo",
    "grpo": "v2_handwritten.align.grpo_train:grpo",
    "evaluate": "v2_handwritten.evaluation.evaluate:evaluate",
    "benchmark": "v2_handwritten.evaluation.benchmarks.harness:benchmark",
    "generate": "v2_handwritten.inference.generate:generate_samples",
}
app = build_app("v2", "Level 2, the main line: every algorithm by hand, in PyTorch.", STAGES)
# Tools of the project, which only this level has.
inspection = "v2_handwritten.inference.inspection"
add_look(app, "v2", f"{inspection}:look_command", f"{inspection}:patterns_command")
add_compare(app, "v2", STAGES, "v2_handwritten.inference.kv_cache:bytes_per_token")

if __name__ == "__main__":
    app()
