"""One command makes a language model at each level; asked again, it does only what has changed."""

import json
import math
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Commands

STAGES = [
    "data",
    "tokenizer",
    "pretrain",
    "sft",
    "reward",
    "dpo",
    "ppo",
    "grpo",
    "evaluate",
    "benchmark",
    "generate",
]
EXAM = {"seconds", "before", "after", "kl", "bits_per_byte_before", "bits_per_byte"}
NUMBERS = {
    "data": {"seconds"},
    "tokenizer": {"seconds"},
    "pretrain": {
        "seconds",
        "bits_per_byte",
        "floor_bits_per_byte",
        "perplexity",
        "tokens_per_second",
        "parameters",
    },
    "sft": {"seconds", "qa_accuracy_before", "qa_accuracy", "tokens_per_second"},
    "reward": {"seconds", "accuracy", "tokens_per_second"},
    "dpo": {"accuracy", *EXAM},
    "ppo": EXAM,
    "grpo": EXAM,
    "evaluate": {"seconds", "bits_per_byte", "floor_bits_per_byte", "perplexity"},
    "benchmark": {
        "story_world_acc",
        "story_world_acc_stderr",
        "story_world_questions_exact_match",
        "seconds",
    },
    "generate": {"seconds"},
}


@pytest.mark.parametrize("level", ["v1", "v2", "v3"])
def test_run_makes_a_model_and_tells_about_it(
    level: str, config: Path, commands: Commands, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = ["--config", config, "--out", run]

    done = commands(level, "run", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [stage for stage in STAGES if f"{level} {stage}" in done.stdout] == STAGES

    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics) == STAGES
    for stage, names in NUMBERS.items():
        assert names <= set(metrics[stage]), stage
        assert all(
            isinstance(value, int | float) and math.isfinite(value) for value in metrics[stage].values()
        ), stage
    assert metrics["evaluate"]["bits_per_byte"] > metrics["evaluate"]["floor_bits_per_byte"] > 0

    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ):
        assert (run / "pretrain" / name).is_file(), name
    page = (run / "report.html").read_text()
    assert "<svg" in page
    assert "95 % interval" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("https://huggingface.co", ""), (
        "the page opens offline"
    )

    again = commands(level, "run", *options, cwd=tmp_path)
    assert again.stdout.count("nothing changed") == len(STAGES)
    assert json.loads((run / "metrics.json").read_text()) == metrics


@pytest.fixture
def a_run(finished_runs: Callable[[str], Path], tmp_path: Path) -> Path:
    """A run of level 2 that ended after pretraining, to go on with."""
    return Path(shutil.copytree(finished_runs("v2"), tmp_path / "run"))


def test_from_only_and_changed_settings_redo_what_they_must(commands: Commands, a_run: Path) -> None:
    def stages_done(*words: str) -> list[str]:
        done = commands("v2", "run", "--out", a_run, *words, cwd=a_run)
        assert done.returncode == 0, done.stderr
        return [
            stage
            for stage in STAGES
            if f"== v2 {stage}" in done.stdout and f"v2 {stage}: nothing changed" not in done.stdout
        ]

    assert stages_done() == STAGES[3:]
    assert stages_done("--only", "evaluate") == []
    assert stages_done("--only", "evaluate", "--force", "--set", "evaluate.max_tokens=400") == ["evaluate"]
    assert stages_done() == [], "the change is remembered"
    assert stages_done("--from", "pretrain") == STAGES[2:]
    (a_run / "tokenizer" / "tokenizer.json").unlink()
    assert stages_done() == ["tokenizer"], "what is missing is made again, and what rests on the same is kept"
    changed = commands("v2", "reward", "--force", "--out", a_run, "--set", "reward.max_steps=3", cwd=a_run)
    assert changed.returncode == 0, changed.stderr
    assert stages_done() == ["ppo"], "PPO rests on the reward model; DPO and GRPO do not"


def test_a_run_goes_on_with_the_settings_it_was_begun_with(
    config: Path, commands: Commands, tmp_path: Path
) -> None:
    """The whole recipe of a user's own corpus: each printed hint is the next command, word for word."""
    story = "Once upon a time number {} went to the market and bought {} red apples for the old woman. "
    lines = [json.dumps({"text": story.format(n, n * 7) * 3}) for n in range(60)]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    words = ["data", "--config", str(config), "--out", "runs/mine", "--set", "data.source=mine.jsonl"]
    held_out = ["--set", "data.validation_fraction=0.3", "--set", "data.test_fraction=0.2"]
    words += [*held_out, "--set", "data.cleaning.enabled=false", "--set", "data.deduplication.near=false"]
    for stage in ("data", "tokenizer", "pretrain", "sft"):
        assert words[0] == stage
        done = commands("v3", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        hint = next(line for line in done.stdout.splitlines() if line.startswith("   next: "))
        words = shlex.split(hint.partition("uv run v3 ")[2])
        assert f"{words[0]} --out runs/mine" in hint
    assert "went to the market" in (tmp_path / "runs/mine/data/train.jsonl").read_text()
    said = [
        commands("v3", "evaluate", *words[1:], "--model", name, cwd=tmp_path) for name in ("pretrain", "sft")
    ]
    assert [done.stderr for done in said] == ["", ""]
    assert said[0].stdout != said[1].stdout
    assert "evaluate" not in json.loads((tmp_path / "runs/mine/metrics.json").read_text())


def test_the_settings_of_a_run_make_it_again(commands: Commands, a_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for stage in ("data", "tokenizer", "pretrain"):
        done = commands("v2", stage, "--config", a_run / "settings.toml", "--out", other, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    for name in ("tokenizer/train.bin", "tokenizer/tokenizer.json", "pretrain/model.safetensors"):
        assert (other / name).read_bytes() == (a_run / name).read_bytes(), name
    assert (other / "pretrain/metrics_log.jsonl").read_text() == (
        a_run / "pretrain/metrics_log.jsonl"
    ).read_text()


@pytest.mark.parametrize("level", ["v2", "v3"])
def test_generate_streams_the_same_text_that_it_writes_at_the_end(
    level: str, config: Path, commands: Commands, a_run: Path
) -> None:
    def text(*words: str) -> str:
        prompts = ["--prompt", "Once upon", "--prompt", "One"]
        done = commands(level, "generate", "--config", config, "--out", a_run, *prompts, *words, cwd=a_run)
        assert done.returncode == 0, done.stderr
        # An untrained model does not end by itself.
        assert set(done.stderr.splitlines()) <= {
            "[stopped after 5 tokens; --max-new-tokens raises the limit]"
        }
        return done.stdout

    streamed = text("--seed", "3")
    assert "Once upon" in streamed
    assert text("--seed", "3", "--no-stream") == streamed
    assert text("--seed", "3", "--no-cache") == streamed
    assert text("--temperature", "0", "--seed", "3") == text("--temperature", "0", "--seed", "4")
