"""One command makes a language model at each level; asked again, it does only what has changed."""

import json
import math
from pathlib import Path

import pytest

from tests.end_to_end.conftest import command

STAGES = ["data", "tokenizer", "pretrain", "evaluate", "generate"]
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
    "evaluate": {"seconds", "bits_per_byte", "floor_bits_per_byte", "perplexity"},
    "generate": {"seconds"},
}


@pytest.mark.parametrize("level", ["v1", "v2", "v3"])
def test_run_makes_a_model_and_tells_about_it(level: str, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--config", config, "--out", run]

    done = command(level, "run", *options)
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
    assert "http" not in page.replace("http://www.w3.org", "").replace("https://huggingface.co", ""), (
        "the page opens offline"
    )

    again = command(level, "run", *options)
    assert again.stdout.count("nothing changed") == len(STAGES)
    assert json.loads((run / "metrics.json").read_text()) == metrics


def test_from_only_and_changed_settings_redo_what_they_must(config: Path, a_run: Path) -> None:
    def stages_done(*arguments: str) -> list[str]:
        done = command("v2", "run", "--config", config, "--out", a_run, *arguments)
        assert done.returncode == 0, done.stderr
        return [
            stage
            for stage in STAGES
            if f"== v2 {stage}" in done.stdout and f"v2 {stage}: nothing changed" not in done.stdout
        ]

    assert stages_done() == ["evaluate", "generate"]  # the run that was copied ended after pretraining
    assert stages_done("--only", "evaluate") == []
    assert stages_done("--only", "evaluate", "--force") == ["evaluate"]
    assert stages_done("--set", "evaluate.max_tokens=400") == ["evaluate"]
    assert stages_done("--set", "evaluate.max_tokens=400", "--from", "pretrain") == [
        "pretrain",
        "evaluate",
        "generate",
    ]


def test_the_settings_of_a_run_make_it_again(config: Path, a_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for stage in ("data", "tokenizer", "pretrain"):
        done = command("v2", stage, "--config", a_run / "settings.toml", "--out", other)
        assert done.returncode == 0, done.stderr
    for name in (
        "tokenizer/train.bin",
        "tokenizer/tokenizer.json",
        "pretrain/model.safetensors",
        "pretrain/metrics_log.jsonl",
    ):
        assert (other / name).read_bytes() == (a_run / name).read_bytes(), name


def test_generate_streams_the_same_text_that_it_writes_at_the_end(config: Path, a_run: Path) -> None:
    def text(*arguments: str) -> str:
        done = command(
            "v2",
            "generate",
            "--config",
            config,
            "--out",
            a_run,
            "-p",
            "Once upon",
            "-p",
            "One",
            "--seed",
            "3",
            *arguments,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    streamed = text()
    assert "Once upon" in streamed
    assert text("--no-stream") == streamed
    assert text("--no-cache") == streamed
    assert text("--temperature", "0", "--seed", "3") == text("--temperature", "0", "--seed", "4")
