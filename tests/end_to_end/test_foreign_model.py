"""Stages that start from a model from elsewhere: its sizes, tokenizer, template and stops; float32; no pretraining, no copied settings."""

import json
import re
import shutil
from collections.abc import Callable
from importlib import resources
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from shared_data.errors import UserError
from shared_data.files import read_json
from shared_data.inference.arguments import end_ids
from shared_data.inference.prompts import encode_chat
from shared_data.model_files.gguf_export import export_gguf
from shared_data.story_world.world import StoryWorld
from shared_data.tokenizer.chat_template import CHAT_TEMPLATE
from tests.end_to_end.conftest import Commands
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer

CONTROL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
STAGES = {
    "sft": ["sft.max_steps=2", "sft.conversations=40", "sft.max_length=512"],
    "reward": ["reward.max_steps=2", "reward.pairs=40", "reward.eval_pairs=8"],
    "dpo": ["dpo.max_steps=2", "dpo.pairs=40", "dpo.eval_pairs=8", "dpo.eval_prompts=4"],
    "grpo": ["grpo.max_steps=1", "grpo.eval_prompts=4"],
    "ppo": ["ppo.max_steps=1", "ppo.eval_prompts=4"],
}
LEVELS = ["v1", "v2", "v3"]


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in bfloat16 and in shards, with Llama 3's template and a stop that only generation_config.json names."""
    folder = tmp_path_factory.mktemp("foreign")
    stories = [story.text for story in islice(StoryWorld().stories(0, "train"), 100)]
    train_bpe(stories, 500, special_tokens=CONTROL).save(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        folder, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )
    template = resources.files("trl") / "chat_templates" / "llama3.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config.eos_token_id = [1, 4]
    model.save_pretrained(folder, max_shard_size="50kB")
    return folder


@pytest.mark.parametrize("level", LEVELS)
def test_every_stage_starts_from_a_folder(
    level: str, foreign: Path, commands: Commands, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for stage, settings in STAGES.items():
        assignments = [word for setting in settings for word in ("--set", setting)]
        done = commands(
            level, stage, "--config", "smoke", "--model", foreign, "--out", run, *assignments, cwd=tmp_path
        )
        assert done.returncode == 0, f"{stage}: {done.stderr}"
        config, weights = read_json(run / stage / "config.json"), load_file(run / stage / "model.safetensors")
        assert (config["hidden_size"], config["num_hidden_layers"]) == (32, 2)
        # A file of bfloat16 is trained in float32, in which small steps are not lost.
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
        saved = (run / stage / "chat_template.jinja").read_text(encoding="utf-8")
        assert saved == (foreign / "chat_template.jinja").read_text(encoding="utf-8")
        if stage != "reward":
            ends = read_json(run / stage / "generation_config.json")["eos_token_id"]
            assert set(end_ids(ends)) == {1, 4} or (
                level == "v1" and ends == 4
            )  # TRL keeps the end of a turn
    assert not (run / "pretrain").exists()
    assert not (run / "tokenizer").exists()


@pytest.mark.parametrize("level", LEVELS)
def test_a_stage_after_it_starts_from_its_result(
    level: str, foreign: Path, commands: Commands, tmp_path: Path
) -> None:
    """`dpo` without `--model` goes on from `sft`; with another model it would lose the result of this one."""
    run = tmp_path / "run"
    settings = [word for stage in ("sft", "dpo") for name in STAGES[stage] for word in ("--set", name)]
    assert commands(level, "sft", "--config", "smoke", "--model", foreign, "--out", run, *settings, cwd=tmp_path).returncode == 0  # fmt: skip
    done = commands(level, "dpo", "--out", run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = commands(level, "dpo", "--model", foreign, "--out", run, cwd=tmp_path)
    assert done.returncode == 2
    assert (
        "holds a finished result, but it was made with dpo.model_name_or_path = none" in done.stderr.lower()
    )


@pytest.mark.parametrize("level", LEVELS)
def test_a_reward_model_is_no_model_to_start_from(
    level: str, foreign: Path, commands: Commands, tmp_path: Path
) -> None:
    """Its folder looks like a language model's but for one tensor: refused before the first step."""
    scores = tmp_path / "scores"
    shutil.copytree(foreign, scores)
    index = read_json(scores / "model.safetensors.index.json")
    save_file({"score.weight": torch.zeros(1, 32)}, scores / "score.safetensors")
    index["weight_map"]["score.weight"] = "score.safetensors"
    (scores / "model.safetensors.index.json").write_text(json.dumps(index))
    for stage in ("sft", "dpo", "grpo"):
        done = commands(level, stage, "--config", "smoke", "--model", scores, "--out", "run", cwd=tmp_path)
        assert done.returncode == 2, stage
        assert "has unexpected tensor score.weight for a llama model" in done.stderr
        assert not (tmp_path / "run" / stage).exists()


def test_a_template_without_its_tokens_is_refused_before_the_first_step(
    foreign: Path, commands: Commands, tmp_path: Path
) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json"):
        (tmp_path / name).write_bytes((foreign / name).read_bytes())
    for shard in foreign.glob("*.safetensors"):
        (tmp_path / shard.name).symlink_to(shard)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end_of_text|>"}))
    done = commands("v2", "sft", "--config", "smoke", "--model", tmp_path, "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "has no special token <|im_end|>, with which the chat template of sft ends a turn" in done.stderr
    with pytest.raises(UserError, match="the model has no chat template"):
        encode_chat(Tokenizer.load(tmp_path), [{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize("level", LEVELS)
def test_a_gguf_file_and_an_adapter_are_trained_further(
    level: str, foreign: Path, commands: Commands, tmp_path: Path
) -> None:
    file, run = tmp_path / "model.gguf", tmp_path / "run"
    export_gguf(foreign, foreign, file, "q8_0")
    lora = ["--set", "sft.adapter.method=lora", "--set", "sft.learning_rate=0.1"]
    options = [word for stage in ("sft", "dpo") for name in STAGES[stage] for word in ("--set", name)]
    options += ["--config", "smoke", "--out", str(run)]
    done = commands(level, "sft", "--model", foreign, *options, *lora, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    starts = {"gguf": file, "adapter": run / "sft" / "adapter"}
    weights = {}
    for name, start in starts.items():
        arguments = ["dpo", "--model", start, "--force", "--set", "dpo.learning_rate=1e-12"]
        done = commands(level, *arguments, *options, *lora, cwd=tmp_path)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        assert (run / "dpo" / "tokenizer.json").is_file()
        weights[name] = load_file(run / "dpo" / "model.safetensors")
    before = load_file(run / "sft" / "model.safetensors")
    for name, tensor in weights["adapter"].items():  # at this learning rate nothing moves
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6)
    moved = "model.layers.0.self_attn.q_proj.weight"
    assert (weights["adapter"][moved] - weights["gguf"][moved]).abs().max() > 0.01, "the adapter counts"


def test_held_out_text_is_read_in_the_tokens_of_the_model(
    foreign: Path, commands: Commands, finished_runs: Callable[[str], Path], tmp_path: Path
) -> None:
    """Bits per byte of the same documents, at all levels the same."""
    found = {}
    for level in LEVELS:
        done = commands(level, "evaluate", "--model", foreign, "--out", finished_runs(level), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found[level] = re.findall(r"(?:bits per byte|text):\s+(.*)", done.stdout)
    assert len(found["v2"]) == 2
    assert found["v1"] == found["v2"] == found["v3"]


@pytest.mark.parametrize("level", LEVELS)
def test_a_reward_model_of_another_tokenizer_is_refused(
    level: str, foreign: Path, commands: Commands, aligned_runs: Callable[[str], Path], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(aligned_runs(level), tmp_path / "run"))
    done = commands(level, "ppo", "--model", foreign, "--out", run, cwd=tmp_path)
    assert done.returncode == 2
    assert "reward has another tokenizer than" in done.stderr


@pytest.mark.parametrize("level", LEVELS)
def test_a_base_model_with_the_tokens_of_our_template_is_tuned_with_it(
    level: str, commands: Commands, finished_runs: Callable[[str], Path], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(finished_runs("v2") / "pretrain", tmp_path / "base"))
    config = read_json(base / "tokenizer_config.json")
    (base / "tokenizer_config.json").write_text(
        json.dumps({key: value for key, value in config.items() if key != "chat_template"})
    )
    run, names = tmp_path / "run", [*STAGES["sft"], "sft.max_length=1024"]
    settings = [word for name in names for word in ("--set", name)]
    done = commands(level, "sft", "--config", "smoke", "--model", base, "--out", run, *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (run / "sft" / "chat_template.jinja").read_text(encoding="utf-8") == CHAT_TEMPLATE
