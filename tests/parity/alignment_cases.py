"""A run folder as after the stage `sft`, tiny and in float64, once for each of levels 2 and 3: where the stages after it begin."""

import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared_data.model_files.config import ModelConfig
from shared_data.runs import RunFolder
from shared_data.settings import SPECIAL_TOKENS, Settings, load_settings
from shared_data.story_world import StoryWorld
from shared_data.story_world.tasks import preference_pairs
from tests.parity.recorder import ParityRecorder
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe
from v2_handwritten.models.checkpoint import save_model
from v2_handwritten.models.reward_model import RewardModel, save_reward_model
from v2_handwritten.models.transformer import Transformer

MODEL = [
    "model.hidden_size=16",
    "model.intermediate_size=32",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=1",
    "model.initializer_range=0.2",  # an untrained model with opinions: probabilities far from uniform, scores far from 0
]
MEASURED_TIME = ("seconds", "tokens_per_second")


def prepare(root: Path) -> Path:
    """The folder: stories, a tokenizer, the same random model as the result of `pretrain` and of `sft`, a random reward model."""
    settings = load_settings("smoke", MODEL)
    run = RunFolder("v2", settings, root)
    stories = [story.text for story in islice(StoryWorld().stories(1, "validation"), 20)]
    documents = [{"id": str(number), "text": text} for number, text in enumerate(stories[:3])]
    run.documents("validation").write_text("".join(json.dumps(document) + "\n" for document in documents))
    tokenizer = train_bpe(stories, 512, special_tokens=SPECIAL_TOKENS)
    tokenizer.save(run.stage("tokenizer"))
    config = ModelConfig.from_settings(settings.model, tokenizer.vocab_size, tokenizer.end_of_text_id)
    model = Transformer(config).initialize(0).to(torch.float64)
    save_model(model, run.model("pretrain"), run.tokenizer.parent)
    ends = [tokenizer.special_tokens["<|im_end|>"], tokenizer.end_of_text_id]
    model.config = replace(config, eos_token_id=ends)
    save_model(model, run.model("sft"), run.tokenizer.parent)
    save_reward_model(RewardModel.from_transformer(model, 1), run.model("reward"), run.tokenizer.parent)
    return root


def run_of(level: str, prepared: Path, folder: Path, overrides: list[str]) -> tuple[Settings, RunFolder]:
    """Settings and a copy of the prepared folder that a level may write into."""
    settings = load_settings("smoke", [*MODEL, *overrides])
    shutil.copytree(prepared, folder / level)
    return settings, RunFolder(level, settings, folder / level)


def logged(run: RunFolder, stage: str) -> list[dict[str, Any]]:
    """The rows of a stage's log without what is measured by the clock."""
    rows = map(json.loads, (run.stage(stage) / "metrics_log.jsonl").read_text().splitlines())
    return [{name: value for name, value in row.items() if name not in MEASURED_TIME} for row in rows]


def compare_logs(
    parity: ParityRecorder,
    component: str,
    actual: list[dict[str, Any]],
    expected: list[dict[str, Any]],
    tolerance: float,
    others: dict[str, float] | None = None,
) -> None:
    """Every number of every row; `others` are the tolerances of those that have one of their own."""
    assert [row.keys() for row in actual] == [row.keys() for row in expected]
    for name in dict.fromkeys(name for row in expected for name in row):
        parity(
            component=component,
            quantity=name,
            levels="v2-v3",
            actual=np.array([row[name] for row in actual if name in row]),
            expected=np.array([row[name] for row in expected if name in row]),
            tolerance=(others or {}).get(name, tolerance),
        )


def forget_last_checkpoint(run: RunFolder, stage: str) -> None:
    """As if the run had been killed after the checkpoint before."""
    *earlier, last = sorted((run.stage(stage) / "state").glob("step-*"))
    assert earlier, "there is a checkpoint to continue from"
    shutil.rmtree(last)


def write_pairs(path: Path, count: int, margin: float | None = None) -> Path:
    """Preference pairs of the story world as a user's records; the margins go up from `margin`."""
    with path.open("w") as file:
        for number, pair in enumerate(islice(preference_pairs(5, "train"), count)):
            record: dict[str, Any] = {
                "prompt": pair.prompt,
                "chosen": pair.chosen,
                "rejected": pair.rejected,
            }
            if margin is not None:
                record["margin"] = margin + number / 10
            file.write(json.dumps(record) + "\n")
    return path
