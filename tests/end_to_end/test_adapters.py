"""Tuning with adapters by the commands: what is kept, what it weighs, and that any level speaks with the adapter of another."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Commands

LEVELS = ("v1", "v2", "v3")
ASK = ["--prompt", "Once upon a time", "--temperature", "0", "--max-new-tokens", "12", "--no-stream"]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_is_kept_and_merged_and_every_level_speaks_with_it(
    method: str,
    level: str,
    config: Path,
    commands: Commands,
    finished_runs: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    run = Path(shutil.copytree(finished_runs(level), tmp_path / "run"))
    options = ["--config", config, "--out", run]
    adapters = [
        "--set",
        f"sft.adapter.method={method}",
        "--set",
        "sft.adapter.r=2",
        "--set",
        "sft.learning_rate=0.1",
    ]
    adapters += ["--set", "sft.warmup_steps=0", "--force"]
    if level != "v1":  # all of a width of 16 or 32
        adapters += ["--set", "sft.adapter.bnb_4bit_blocksize=32"]
    # Bitsandbytes decodes narrower rows wrongly on a CPU, and level 1 says so.
    if method == "qlora" and level == "v1":
        done = commands(level, "sft", *options, *adapters, cwd=tmp_path)
        assert done.returncode == 2
        assert "decodes rows that end inside a block of 64 wrongly on a CPU" in done.stderr
        return
    done = commands(level, "sft", *options, *adapters, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((run / "metrics.json").read_text())
    assert numbers["sft"]["trainable_parameters"] < numbers["pretrain"]["parameters"] / 3
    assert {path.name for path in (run / "sft/adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }

    def says(speaker: str, folder: Path) -> str:
        done = commands(speaker, "generate", *options, *ASK, "--model", folder, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    # The base of qlora's adapter is the 4-bit model, whose weights only the merged one has.
    if method == "lora":
        merged = says("v2", run / "sft")
        assert {says(speaker, run / "sft/adapter") for speaker in LEVELS} == {merged}
        assert says("v2", run / "pretrain") != merged, "the adapter must be heard"


def test_an_adapter_without_its_base_is_one_line(
    config: Path, commands: Commands, finished_runs: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/where"}))
    options = ["--config", config, "--out", finished_runs("v2"), *ASK, "--model", adapter]
    lines = {level: commands(level, "generate", *options, cwd=tmp_path) for level in LEVELS}
    for level, done in lines.items():
        assert done.returncode == 2, level
        assert "there is no folder some/where here, and the hub cannot be reached" in done.stderr
    assert len({done.stderr for done in lines.values()}) == 1


@pytest.mark.parametrize("level", LEVELS)
def test_a_tokenizer_trained_on_conversations_knows_their_words(
    level: str, config: Path, commands: Commands, finished_runs: Callable[[str], Path], tmp_path: Path
) -> None:
    def vocabulary(*words: str) -> dict[str, int]:
        run = Path(shutil.copytree(finished_runs(level), tmp_path / f"run{len(words)}"))
        sizes = ["--force", "--set", "tokenizer.vocab_size=600", *words]
        done = commands(level, "tokenizer", "--config", config, "--out", run, *sizes, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads((run / "tokenizer/tokenizer.json").read_text())["model"]["vocab"]

    knowing = vocabulary(
        "--set", "tokenizer.chat_source=story_world", "--set", "tokenizer.chat_conversations=60"
    )
    assert {"Question", "assistant", "user"} <= set(knowing)
    assert not {"Question", "assistant"} & set(vocabulary())
