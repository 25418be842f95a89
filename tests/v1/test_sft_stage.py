"""Level 1: what the stage `sft` leaves, with all weights trained and with adapters, and what it counts."""

import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from shared_data.errors import UserError
from shared_data.peft.adapted_model import merged_state_dict
from shared_data.peft.config import QuantizationConfig
from shared_data.peft.memory import memory_bytes
from shared_data.runs import RunFolder
from shared_data.settings import Settings, load_settings
from shared_data.story_world.conversations import conversations
from tests.parity.inference_cases import small_run
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer
from v1_quick.finetune import sft_train
from v1_quick.finetune.chat_data import encode_conversation
from v1_quick.finetune.sft_train import VALIDATION_PART, sft
from v2_handwritten.models.checkpoint import load_model
from v2_handwritten.models.peft.adapters import load_adapter
from v2_handwritten.models.peft.qlora import quantize_model

LLAMA = ["model.hidden_size=32", "model.intermediate_size=64", "model.max_position_embeddings=1024"]
GPT2 = [*LLAMA, "model.model_type=gpt2", "model.num_key_value_heads=none"]
SFT = [
    "sft.conversations=8",
    "sft.questions_per_story=1",
    "sft.eval_questions=2",
    "sft.max_steps=2",
    "sft.warmup_steps=0",
    "sft.logging_steps=1",
    "sft.eval_steps=1",
    "sft.learning_rate=1e-2",
    "sft.adapter.r=2",
    "sft.adapter.bnb_4bit_blocksize=32",
]
KEYS = [
    "steps",
    "tokens",
    "conversations",
    "tokens_per_second",
    "loss",
    "trainable_parameters",
    "training_bytes",
    "qa_accuracy_before",
    "qa_accuracy",
    "unanswerable_accuracy",
]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pretrained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """A run folder as after `pretrain`, and the settings of its model."""
    model = LLAMA if request.param == "llama" else GPT2
    return small_run(tmp_path_factory.mktemp(request.param), *model, stories=4).path, model


def prepare(pretrained: tuple[Path, list[str]], folder: Path, *overrides: str) -> tuple[Settings, RunFolder]:
    """Settings, and a copy of the folder to write into."""
    settings = load_settings("smoke", [*pretrained[1], *SFT, *overrides])
    shutil.copytree(pretrained[0], folder / "run")
    return settings, RunFolder("v1", settings, folder / "run")


def test_a_tuned_model_ends_its_turn_and_counts_what_it_learned_from(
    pretrained: tuple[Path, list[str]], tmp_path: Path
) -> None:
    settings, run = prepare(
        pretrained, tmp_path, "sft.max_length=1000", "sft.per_device_train_batch_size=9", "sft.max_steps=1"
    )
    shutil.copytree(run.stage("pretrain"), run.stage("sft") / "adapter")  # of an earlier run with adapters
    numbers = sft(settings, run)
    assert list(numbers) == KEYS
    folder = run.stage("sft")
    assert not (folder / "adapter").exists()
    tokenizer = Tokenizer.load(run.tokenizer)
    ends = [tokenizer.special_tokens["<|im_end|>"], tokenizer.end_of_text_id]
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / name).read_text())["eos_token_id"] == ends
    tuned = load_model(folder)
    parameters = sum(parameter.numel() for parameter in tuned.parameters())
    assert numbers["trainable_parameters"] == parameters
    assert numbers["training_bytes"] == memory_bytes(tuned)["total"] == 16 * parameters

    section = settings.sft
    told = list(islice(conversations(0, "train", 1, section.request_fraction), 8))
    learned = [messages for number, messages in enumerate(told) if number % VALIDATION_PART]
    assert numbers["conversations"] == len(learned) == 7
    replies = sum(int(encode_conversation(tokenizer, messages, 1000).trained.sum()) for messages in learned)
    assert numbers["tokens"] == replies, "the one step was a whole epoch"
    (row,) = map(json.loads, (folder / "metrics_log.jsonl").read_text().splitlines())
    assert row.keys() == {"step", "loss", "gradient_norm", "learning_rate", "tokens", "validation_loss"}
    assert row["loss"] == numbers["loss"]


def test_packed_rows_stay_apart_and_so_do_the_conversations_in_them(
    pretrained: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch keeps its shape, and its loss is that of every conversation read alone."""
    shapes: list[tuple[int, ...]] = []
    collator = sft_train._rows_apart

    def spy(pad_id: int) -> Any:
        collate = collator(pad_id)

        def watched(examples: Any) -> Any:
            batch = collate(examples)
            shapes.append(tuple(batch["input_ids"].shape))
            return batch

        return watched

    monkeypatch.setattr(sft_train, "_rows_apart", spy)
    overrides = [
        "sft.max_length=1000",
        "sft.per_device_train_batch_size=9",
        "sft.max_steps=1",
        "sft.eval_steps=0",
    ]
    settings, run = prepare(pretrained, tmp_path, *overrides)
    loss = sft(settings, run)["loss"]
    assert shapes[0][0] > 1
    assert 800 < shapes[0][1] <= 1000
    tokenizer, model = Tokenizer.load(run.tokenizer), load_model(run.model("pretrain"))
    total, trained = 0.0, 0
    told = conversations(0, "train", 1, settings.sft.request_fraction)
    for number, messages in enumerate(islice(told, 8)):
        if number % VALIDATION_PART:
            example = encode_conversation(tokenizer, messages, 1000)
            ids, answers = (torch.from_numpy(array) for array in (example.ids, example.trained))
            losses = torch.nn.functional.cross_entropy(
                model(ids[None].long())[0, :-1], ids[1:].long(), reduction="none"
            )
            total += losses[answers[1:].bool()].sum().item()
            trained += int(answers[1:].sum())
    assert loss == pytest.approx(total / trained, rel=1e-5)


def test_muon_tunes_the_hidden_matrices(pretrained: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Each of them moves by about the same length at every step, 0.2 η √(AB); and needs one moment, not two."""
    settings, run = prepare(
        pretrained, tmp_path, "sft.optim=muon", "sft.lr_scheduler_type=constant", "sft.max_steps=1"
    )
    numbers = sft(settings, run)
    before, after = (load_model(run.stage(stage)).state_dict() for stage in ("pretrain", "sft"))
    hidden = {name for name in after if after[name].ndim == 2 and ("attn" in name or "mlp" in name)}
    assert len(hidden) == settings.model.num_hidden_layers * (7 if "model.norm.weight" in after else 4)
    for name in hidden:
        moved = (after[name] - before[name]).norm()
        length = 0.2 * settings.sft.learning_rate * after[name].numel() ** 0.5
        assert 0.6 * length < moved < 1.2 * length, name
    saved = 4 * sum(after[name].numel() for name in hidden)
    assert numbers["training_bytes"] == memory_bytes(load_model(run.stage("sft")))["total"] - saved


@pytest.mark.parametrize("whole", [False, True], ids=["frozen embedding", "whole embedding"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_merged_model_is_the_one_that_level_2_merges(
    pretrained: tuple[Path, list[str]], tmp_path: Path, method: str, whole: bool
) -> None:
    embedding = "wte" if pretrained[1] is GPT2 else "embed_tokens"
    settings, run = prepare(
        pretrained,
        tmp_path,
        f"sft.adapter.method={method}",
        "sft.adapter.use_dora=true",
        f"sft.adapter.modules_to_save={[embedding] if whole else []}",
    )
    numbers = sft(settings, run)
    assert list(numbers) == KEYS
    folder = run.stage("sft")
    kept = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (kept["r"], kept["use_dora"]) == (2, True)
    assert bool(kept["modules_to_save"]) == whole
    assert kept["base_model_name_or_path"] == str(run.model("pretrain"))
    theirs: Any = load_model(run.model("pretrain"))
    before = {name: weight.clone() for name, weight in theirs.state_dict().items()}
    if method == "qlora":
        quantize_model(theirs, QuantizationConfig(block_size=32))
    load_adapter(theirs, folder / "adapter")
    assert numbers["trainable_parameters"] == sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert numbers["training_bytes"] == memory_bytes(theirs)["total"]
    merged, left = merged_state_dict(theirs), load_model(folder).state_dict()
    assert merged.keys() == left.keys()
    for name, weight in left.items():
        torch.testing.assert_close(weight, merged[name], rtol=0, atol=2e-8)
    assert max((left[name] - before[name]).abs().max() for name in left) > 1e-3
    rows = [json.loads(line) for line in (folder / "metrics_log.jsonl").read_text().splitlines()]
    assert rows[1]["validation_loss"] < rows[0]["validation_loss"], "it learns"


def test_what_cannot_be_tuned_leaves_no_trace(pretrained: tuple[Path, list[str]], tmp_path: Path) -> None:
    settings, run = prepare(
        pretrained, tmp_path, "sft.adapter.method=qlora", "sft.adapter.bnb_4bit_blocksize=64"
    )
    with pytest.raises(UserError, match="such as 32"):
        sft(settings, run)
    assert not (run.path / "sft").exists()
