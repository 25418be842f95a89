"""Level 1: each stage leaves a Hugging Face folder and finite numbers, and goes on from its last checkpoint."""

import importlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import v1_quick
from shared_data.errors import UserError
from shared_data.model_files.folder import read_reward_config
from shared_data.model_files.gguf_export import export_gguf
from shared_data.runs import RunFolder
from shared_data.settings import Settings, load_settings
from shared_data.stages import STAGES
from shared_data.training.data_loader import open_documents

SMALL = [
    *("data.max_megabytes=0.05", "data.validation_megabytes=0.01"),
    "model.hidden_size=64",
    "model.intermediate_size=128",
    "model.num_hidden_layers=1",
    "model.initializer_range=0.2",  # attention then matters without training
    "pretrain.sequence_length=256",
    *("generate.max_new_tokens=4", "evaluate.max_tokens=512"),
    *("pretrain.max_steps=4", "pretrain.save_steps=2", "pretrain.optim=muon"),
    *("sft.conversations=8", "sft.eval_questions=2", "sft.max_steps=4", "sft.save_steps=2"),
    *("reward.pairs=8", "reward.eval_pairs=4", "reward.max_steps=4", "reward.save_steps=2"),
    *("dpo.pairs=8", "dpo.eval_pairs=4", "dpo.max_steps=4", "dpo.save_steps=2", "dpo.eval_prompts=2"),
    *("ppo.prompts=8", "ppo.max_steps=2", "ppo.eval_prompts=2", "ppo.max_completion_length=8"),
    *("grpo.prompts=8", "grpo.eval_prompts=2", "grpo.max_completion_length=8"),
]
REQUIRED = {
    "pretrain": {"bits_per_byte", "floor_bits_per_byte", "perplexity", "tokens_per_second", "parameters"},
    "sft": {"qa_accuracy", "qa_accuracy_before", "loss", "conversations"},
    "reward": {"accuracy", "margin", "pairs"},
    "dpo": {"before", "after", "kl", "bits_per_byte", "accuracy"},
    "ppo": {"before", "after", "kl", "bits_per_byte", "objective/kl"},
    "grpo": {"before", "after", "kl", "bits_per_byte", "reward"},
}
RESUMABLE = ["pretrain", "sft", "reward", "dpo", "grpo"]
FUNCTIONS = {
    "data": "data_pipeline.prepare:prepare_documents",
    "tokenizer": "data_pipeline.prepare:prepare_tokens",
    "pretrain": "pretrain.train:pretrain",
    "sft": "finetune.sft_train:sft",
    "reward": "align.rm_train:reward",
    "dpo": "align.dpo_train:dpo",
    "ppo": "align.ppo_train:ppo",
    "grpo": "align.grpo_train:grpo",
    "evaluate": "evaluation.evaluate:evaluate",
    "benchmark": "evaluation.benchmark:benchmark",
    "generate": "inference.generate:generate_samples",
}


def stage(name: str) -> Callable[[Settings, RunFolder], dict[str, Any]]:
    """The function of a stage."""
    module, _, function = FUNCTIONS[name].partition(":")
    return getattr(importlib.import_module(f"v1_quick.{module}"), function)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, dict[str, dict[str, Any]]]:
    """Every stage, done once, and its numbers."""
    settings = load_settings("smoke", SMALL)
    run = RunFolder("v1", settings, tmp_path_factory.mktemp("run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shared_data.inference.commands.STORIES", 1)
        return run, {name: stage(name)(settings, run) for name in STAGES}


def copied(run: RunFolder, folder: Path, *overrides: str) -> tuple[Settings, RunFolder]:
    """Other settings, and a copy of the run to write into."""
    shutil.copytree(run.path, folder / "run")
    settings = load_settings("smoke", [*SMALL, *overrides])
    return settings, RunFolder("v1", settings, folder / "run")


@pytest.mark.parametrize("name", REQUIRED)
def test_a_stage_leaves_finite_numbers_and_a_log(finished: Any, name: str) -> None:
    run, numbers = finished
    assert REQUIRED[name] <= numbers[name].keys()
    assert all(math.isfinite(value) for value in numbers[name].values())
    rows = [json.loads(line) for line in (run.stage(name) / "metrics_log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == getattr(run.settings, name).max_steps == numbers[name]["steps"]


@pytest.mark.parametrize("name", [name for name in REQUIRED if name != "reward"])
def test_a_stage_leaves_a_model_that_writes(finished: Any, name: str) -> None:
    run, _ = finished
    model, tokenizer = v1_quick.load_model(run.model(name)), v1_quick.load_tokenizer(run.model(name))
    prompts = [tokenizer.encode("Once"), tokenizer.encode("One day, a cat")]
    new_ids = v1_quick.generate(model, prompts, max_new_tokens=3, temperature=0.0)
    logits = model(torch.tensor([prompts[1]])).logits
    assert new_ids[1][0] == logits[0, -1].argmax(), "left padding changes nothing"
    end = "<|endoftext|>" if name == "pretrain" else "<|im_end|>"
    assert model.config.eos_token_id == tokenizer.convert_tokens_to_ids(end)


def test_documents_that_share_a_row_do_not_see_each_other(finished: Any) -> None:
    """Level 2 masks them by itself; the library has to find them in the positions."""
    from v2_handwritten.data_pipeline.tokenizer.tokenizer import load_tokenizer
    from v2_handwritten.models.checkpoint import load_model
    from v2_handwritten.pretrain.components.training import evaluate_loss

    run, numbers = finished
    validation = open_documents(run.settings, run, "validation", load_tokenizer(run.tokenizer))
    expected = evaluate_loss(
        load_model(run.model("pretrain")), validation, run.settings.pretrain.eval_batches
    )
    assert numbers["pretrain"]["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)


def test_the_reward_model_scores_with_one_number(finished: Any) -> None:
    run, _ = finished
    assert read_reward_config(run.model("reward")).hidden_size == 64


@pytest.mark.parametrize("name", RESUMABLE)
def test_a_killed_stage_goes_on_from_its_last_whole_checkpoint(
    finished: Any, tmp_path: Path, name: str
) -> None:
    settings, run = copied(finished[0], tmp_path)
    expected = load_file(run.model(name) / "model.safetensors")
    (run.model(name) / "model.safetensors").unlink()
    (checkpoints,) = (run.stage(name) / "checkpoints").iterdir()
    (checkpoints / "checkpoint-4" / "trainer_state.json").unlink()  # killed while it was written
    first = checkpoints / "checkpoint-2" / "model.safetensors"
    written = first.stat().st_mtime_ns
    numbers = stage(name)(settings, run)
    assert numbers["steps"] == 4
    assert first.stat().st_mtime_ns == written, "it began at step 2"
    for key, weight in load_file(run.model(name) / "model.safetensors").items():
        torch.testing.assert_close(weight, expected[key], rtol=1e-5, atol=1e-6)


def test_other_settings_start_over(finished: Any, tmp_path: Path) -> None:
    settings, run = copied(finished[0], tmp_path, "sft.learning_rate=1e-4", "sft.max_steps=2")
    before = set((run.stage("sft") / "checkpoints").iterdir())
    assert stage("sft")(settings, run)["steps"] == 2
    assert before.isdisjoint((run.stage("sft") / "checkpoints").iterdir())


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_is_kept_and_merged(finished: Any, tmp_path: Path, method: str) -> None:
    settings, run = copied(finished[0], tmp_path, f"sft.adapter.method={method}", "sft.learning_rate=1e-2")
    numbers = stage("sft")(settings, run)
    assert numbers["trainable_parameters"] < finished[1]["pretrain"]["parameters"]
    merged = v1_quick.load_model(run.model("sft"))
    ids = torch.tensor([[5, 6, 7, 8]])
    if method == "lora":
        from peft import PeftModel

        base = v1_quick.load_model(run.model("pretrain"))
        adapted = PeftModel.from_pretrained(base, run.stage("sft") / "adapter")
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-5)
    assert merged.config.eos_token_id == 3


@pytest.mark.parametrize("kind", ["folder", "GGUF file"])
def test_pretraining_starts_from_another_model(finished: Any, tmp_path: Path, kind: str) -> None:
    source = weights = finished[0].model("pretrain")
    if kind == "GGUF file":
        source = tmp_path / "model.gguf"
        export_gguf(weights, weights, source, "f32")
    settings, run = copied(
        finished[0], tmp_path, f"pretrain.model_name_or_path={source}", "pretrain.learning_rate=1e-9"
    )
    stage("pretrain")(settings, run)
    expected = load_file(weights / "model.safetensors")
    for name, weight in load_file(run.model("pretrain") / "model.safetensors").items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("ppo", "ppo.reward=story_world", "takes the reward model only"),
        ("ppo", "ppo.per_device_train_batch_size=64", "less than one batch"),
        ("dpo", "dpo.label_smoothing=0.1", "no dpo.label_smoothing"),
        ("grpo", "grpo.max_completion_length=2000", "exceed the model's 1024 positions"),
        ("pretrain", "pretrain.fp16=true", "float16 on GPUs only"),
        ("sft", "sft.learning_rate=1e9", "training diverged"),
    ],
)
def test_what_level_1_does_not_do_is_one_line(
    finished: Any, tmp_path: Path, name: str, override: str, message: str
) -> None:
    settings, run = copied(finished[0], tmp_path, override)
    with pytest.raises(UserError, match=message):
        stage(name)(settings, run)


def test_a_bad_pair_is_named(finished: Any, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "Hi", "chosen": "Hello", "rejected": " "}) + "\n")
    settings, run = copied(finished[0], tmp_path, f"dpo.source={pairs}")
    with pytest.raises(UserError, match=r"pairs.jsonl.*'rejected' is empty"):
        stage("dpo")(settings, run)


def test_a_damaged_model_is_one_line(finished: Any, tmp_path: Path) -> None:
    shutil.copytree(finished[0].model("pretrain"), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        v1_quick.load_model(tmp_path / "model")


def test_the_commands_stream_what_generate_returns(finished: Any) -> None:
    from v1_quick.inference.chat import chat_command
    from v1_quick.inference.generate import generate_command

    run, _ = finished
    written: list[str] = []
    generate_command(run.settings, run, ["Once upon"], "pretrain", True, written.append)
    again: list[str] = []
    generate_command(run.settings, run, ["Once upon"], str(run.model("pretrain")), False, again.append)
    assert written[0] == "Once upon"
    assert "".join(written) == "".join(again), "with and without cache, by stage and by folder"
    answers: list[str] = []
    chat_command(run.settings, run, "sft", ["Hello\n", "/reset\n", "Hello\n", "/quit\n"], answers.append)
    assert any("begins anew" in answer for answer in answers)
