"""A run folder as after the stages `tokenizer`, `pretrain`, `sft` and `reward`, tiny and in float64: where stages begin in tests."""

import json
import shutil
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from shared_data.corpus.token_files import encode_split
from shared_data.model_files.config import ModelConfig
from shared_data.runs import RunFolder
from shared_data.settings import SPECIAL_TOKENS, load_settings
from shared_data.story_world import StoryWorld
from tests.parity.training_cases import level_module
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe
from v2_handwritten.models.checkpoint import save_model
from v2_handwritten.models.reward_model import RewardModel
from v2_handwritten.models.transformer import new_model

STAGES = {
    "pretrain": "pretrain.train",
    "sft": "finetune.sft_train",
    "reward": "align.rm_train",
    "dpo": "align.dpo_train",
    "ppo": "align.ppo_train",
    "grpo": "align.grpo_train",
}
MODEL = [
    "model.hidden_size=16",
    "model.intermediate_size=32",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=1",
    "model.initializer_range=0.2",  # an untrained model with opinions: probabilities far from uniform, scores far from 0
]
MEASURED_TIME = ("seconds", "tokens_per_second")
# Small settings of every stage; with an epsilon of 1e-8, Adam makes steps of gradients that are nothing but rounding.
SHORT = [
    "max_steps=3",
    "logging_steps=1",
    "warmup_steps=0",
    "learning_rate=1e-2",
    "save_steps=1",
    "weight_decay=0.1",
]
SHORT += ["adam_epsilon=1e-5"]
_PAIRS = [
    "pairs=7",
    "eval_pairs=3",
    "per_device_train_batch_size=2",
    "gradient_accumulation_steps=2",
    "eval_steps=2",
]
_ONLINE = ["prompts=6", "eval_prompts=3", "max_completion_length=8"]
SMALL: dict[str, list[str]] = {
    "pretrain": [*SHORT, "sequence_length=32", "eval_steps=2", "sample_steps=2", "sample_tokens=3"],
    "sft": [
        *SHORT,
        "conversations=8",
        "passage_fraction=1.0",
        "eval_questions=2",
        "eval_steps=2",
        "eval_batches=1",
    ],
    "reward": [*SHORT, *_PAIRS],
    "dpo": [*SHORT, *_PAIRS, "eval_prompts=3", "max_completion_length=8"],
    "ppo": [*SHORT, *_ONLINE, "per_device_train_batch_size=3", "num_ppo_epochs=2", "num_mini_batches=2"],
    "grpo": [*SHORT, *_ONLINE, "per_device_train_batch_size=6", "num_generations=3"],
}


def prepare(root: Path) -> Path:
    """The folder: stories, a tokenizer and token files, one random model as `pretrain` and `sft`, a random reward model."""
    settings = load_settings("smoke", MODEL)
    run = RunFolder("v2", settings, root)
    stories = list(islice(StoryWorld().stories(1, "validation"), 20))
    tokenizer = train_bpe((story.text for story in stories), 512, special_tokens=SPECIAL_TOKENS)
    tokenizer.save(run.stage("tokenizer"))
    encode, ids = (
        partial(tokenizer.encode_to_array, end_of_text=True),
        (tokenizer.vocab_size, tokenizer.end_of_text_id),
    )
    for split, part in (("train", stories[3:]), ("validation", stories[:3])):
        records = [
            {"id": story.text[:9], "text": story.text, "log2_probability": story.log2_probability}
            for story in part
        ]
        run.documents(split).write_text("".join(json.dumps(record) + "\n" for record in records))
        encode_split(run.documents(split), run.tokens(split), encode, *ids)
    config = ModelConfig.from_settings(settings.model, tokenizer.vocab_size, tokenizer.end_of_text_id)
    model = new_model(config).double()
    save_model(model, run.model("pretrain"), run.tokenizer.parent)
    ends = [tokenizer.special_tokens["<|im_end|>"], tokenizer.end_of_text_id]
    model.config = replace(config, eos_token_id=ends)
    save_model(model, run.model("sft"), run.tokenizer.parent)
    save_model(RewardModel.from_transformer(model, 1), run.model("reward"), run.tokenizer.parent)
    return root


class StageRun:
    """One stage of a level in a copy of the prepared folder."""

    def __init__(self, level: str, stage: str, prepared: Path, folder: Path, *overrides: str) -> None:
        self.level, self.stage = level, stage
        if not folder.exists():
            shutil.copytree(prepared, folder)
        named = [o if o.startswith("model.") else f"{stage}.{o}" for o in (*SMALL[stage], *overrides)]
        self.settings = load_settings("smoke", [*MODEL, *named])
        self.run = RunFolder(level, self.settings, folder)
        self.folder = folder / stage

    def __call__(self) -> dict[str, Any]:
        """Run it; the metrics that it returns, without what is measured by the clock."""
        metrics = getattr(level_module(self.level, STAGES[self.stage]), self.stage)(self.settings, self.run)
        return {name: value for name, value in metrics.items() if name not in MEASURED_TIME}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the log."""
        return list(map(json.loads, (self.folder / "metrics_log.jsonl").read_text().splitlines()))

    def weights(self, where: str = "model.safetensors") -> np.ndarray:
        """All numbers of a file in a row."""
        tensors = load_file(self.folder / where)
        return np.concatenate([tensors[key].ravel() for key in sorted(tensors)])

    @property
    def checkpoints(self) -> list[Path]:
        return sorted((self.folder / "state").glob("step-*"))

    @property
    def result(self) -> dict[str, bytes]:
        """The log and all weights and moments, also of the last checkpoint."""
        files = [self.folder / "metrics_log.jsonl", self.folder / "model.safetensors"]
        files += [*self.folder.glob("adapter/*.safetensors"), *self.checkpoints[-1].rglob("*.safetensors")]
        return {str(file.relative_to(self.folder)): file.read_bytes() for file in files}
