"""`--config tiny-zh` on Chinese text of the user: every level makes a model, shows tokens as text, and says what it leaves out."""

import json
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Commands
from tests.real_files.made_texts import made_text

SMALL = {
    "data.validation_fraction": 0.15,
    "data.test_fraction": 0.15,
    "tokenizer.vocab_size": 512,
    "model.hidden_size": 16,
    "model.intermediate_size": 16,
    "model.num_hidden_layers": 1,
    "pretrain.max_steps": 2,
    "pretrain.sample_steps": 2,
    "pretrain.sequence_length": 64,
    "evaluate.max_tokens": 500,
    "generate.max_new_tokens": 8,
}
MADE = ["data", "tokenizer", "pretrain", "evaluate", "generate"]
LEFT_OUT = ["sft", "reward", "dpo", "ppo", "grpo", "benchmark"]
BYTE_LEVEL = "åæçèéäï¼Ġ"  # how the first bytes of Chinese characters, and a space, stand in tokenizer.json


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("book") / "book.jsonl"
    texts = [made_text("zh", seed, 300) for seed in range(60)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.mark.parametrize("level", ["v1", "v2", "v3"])
def test_chinese_text_becomes_a_model(level: str, book: Path, commands: Commands, tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    options = ["--config", "tiny-zh", "--set", f"data.source={book}", *overrides, "--out", run]
    done = commands(level, "run", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(json.loads((run / "metrics.json").read_text())) == MADE
    assert "left out: sft, reward, dpo, ppo, grpo (no data, since the source is none;" in done.stdout
    assert "left out: benchmark (sft comes before)" in done.stdout
    assert "characters, " in done.stdout
    assert "distinct" in done.stdout

    held_out = [
        json.loads(line)["text"] for line in (run / "data" / "validation.jsonl").open(encoding="utf-8")
    ]
    samples = json.loads((run / "generate" / "samples.json").read_text(encoding="utf-8"))
    assert len(samples) == 3
    for sample in samples:
        assert len(sample["prompt"]) == 6
        assert any(text.startswith(sample["prompt"]) for text in held_out)

    page = (run / "report.html").read_text(encoding="utf-8")
    shown = [page, done.stdout]
    if level == "v2":  # the tools of the project
        shown.append(commands(level, "look", samples[0]["prompt"], "--out", run, cwd=tmp_path).stdout)
    for text in shown:
        assert not [letter for letter in BYTE_LEVEL if letter in text]
    assert "&lt;0xE" in page, "a token that is part of a character"
    assert samples[0]["prompt"] in page


@pytest.mark.parametrize("level", ["v1", "v2", "v3"])
def test_what_is_left_out_can_be_asked_for_with_data_only(
    level: str, book: Path, commands: Commands, tmp_path: Path
) -> None:
    run = ["--config", "tiny-zh", "--out", tmp_path / "run"]
    done = commands(level, "run", *run, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: data.source is 'none'; name the data with --set data.source=FILE\n"
    source = ["--set", f"data.source={book}"]
    done = commands(level, "run", *run, *source, "--from", "sft", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the stage sft is left out: no data, since the source is none; name")
    assert done.stderr.count("\n") == 1
