"""The command `quantize`: its folder, its numbers, what other commands do with the folder, and what users do wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Commands, snapshot
from tests.end_to_end.test_bad_input import assert_one_line

LEVELS = ("v1", "v2", "v3")
ASK = ["--prompt", "Once upon a time", "--temperature", "0", "--max-new-tokens", "12", "--no-stream"]
SAMPLES = ["--calibration-samples", "8"]
Runs = Callable[[str], Path]


def model(run: Path) -> list[str | Path]:
    return ["--model", run / "pretrain"]


@pytest.mark.parametrize(
    ("level", "scheme"), [("v1", "int8"), ("v1", "int4"), ("v2", "gptq"), ("v2", "nf4"), ("v3", "awq")]
)
def test_a_smaller_folder_is_written_and_measured_and_every_command_takes_it(
    level: str, scheme: str, config: Path, commands: Commands, finished_runs: Runs, tmp_path: Path
) -> None:
    run, out, numbers = finished_runs(level), tmp_path / "made" / scheme, tmp_path / "numbers.json"
    words = ["quantize", "--config", config, *model(run), "--scheme", scheme, "--out", out, "--json", numbers]
    before = snapshot(run)
    done = commands(level, *words, *SAMPLES, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "perplexity:" in done.stdout
    assert "tokens/s before" in done.stdout
    assert snapshot(run) == before
    assert [path.name for path in out.parent.iterdir()] == [scheme], "nothing is left beside it"
    assert {path.name for path in out.iterdir()} >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "quantization.svg",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    entry = json.loads((out / "config.json").read_text())["quantization_config"]
    assert entry["quant_method"] == {"int8": "bitsandbytes", "nf4": "bitsandbytes", "int4": "torchao"}.get(
        scheme, "gptq"
    )
    found = json.loads(numbers.read_text())
    assert found["scheme"] == scheme
    assert found["after"]["megabytes"] < found["before"]["megabytes"]
    assert abs(found["after"]["perplexity"] / found["before"]["perplexity"] - 1) < 0.05
    assert min(found[when]["tokens_per_second"] for when in ("before", "after")) > 0
    options = ["--config", config, "--out", run, "--model", out]
    generated = commands(level, "generate", *options, *ASK, cwd=tmp_path)
    assert generated.returncode == 0, generated.stderr
    assert generated.stdout.startswith("Once upon a time")
    evaluated = commands(level, "evaluate", *options, cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    exported = commands(
        level, "export", "--config", config, "--model", out, "--out", tmp_path / "a.gguf", cwd=tmp_path
    )
    assert_one_line(
        exported, rf"is quantized already \({'torchao' if scheme == 'int4' else scheme}\); export the model"
    )


def test_every_level_says_the_same_with_the_same_folder(
    config: Path, commands: Commands, finished_runs: Runs, tmp_path: Path
) -> None:
    run = finished_runs("v2")
    for scheme, readers in (("int8", LEVELS), ("gptq", ("v2", "v3"))):
        out = tmp_path / scheme
        done = commands(
            "v2",
            "quantize",
            "--config",
            config,
            *model(run),
            "--scheme",
            scheme,
            "--out",
            out,
            *SAMPLES,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        said = set()
        for level in readers:
            done = commands(
                level, "generate", "--config", config, "--out", run, *ASK, "--model", out, cwd=tmp_path
            )
            assert done.returncode == 0, done.stderr
            said.add(done.stdout)
        assert len(said) == 1, said
    for level, says in (("v1", r"GPTQ's packed int4 format, .*; use level 2 or 3"),):
        done = commands(
            level, "generate", "--config", config, "--out", run, *ASK, "--model", out, cwd=tmp_path
        )
        assert_one_line(done, says)


@pytest.mark.parametrize("level", LEVELS)
def test_training_goes_on_from_the_decoded_weights(
    level: str, config: Path, commands: Commands, finished_runs: Runs, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished_runs(level), tmp_path / "run"))
    words = ["quantize", "--config", config, *model(run), "--scheme", "int8", "--out", tmp_path / "q"]
    done = commands(level, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tuned = commands(level, "sft", "--config", config, "--out", run, "--model", tmp_path / "q", cwd=tmp_path)
    assert tuned.returncode == 0, tuned.stderr
    assert "quantization_config" not in json.loads((run / "sft/config.json").read_text())


def test_a_file_is_calibrated_on_and_its_end_is_measured_on_without_a_run(
    config: Path, commands: Commands, finished_runs: Runs, tmp_path: Path
) -> None:
    alone = Path(shutil.copytree(finished_runs("v2") / "pretrain", tmp_path / "alone"))
    shutil.copy(finished_runs("v2") / "tokenizer/tokenizer.json", alone)
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little dog who had a red ball. " * 100)
    words = ["quantize", "--config", config, "--model", alone, "--scheme", "gptq"]
    done = commands(
        "v2",
        *words,
        "--calibration",
        text,
        "--calibration-samples",
        "2",
        "--out",
        tmp_path / "a",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert " before, " in done.stdout.partition("perplexity:")[2].splitlines()[0]
    done = commands("v2", *words, "--out", tmp_path / "b", cwd=tmp_path)
    assert_one_line(
        done, r"no calibration text, since the model is not of a run; name some with --calibration"
    )
    done = commands("v2", *words[:-1], "int8", "--out", tmp_path / "b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not measured: there is no held-out text" in done.stdout


def test_a_quantized_folder_is_replaced_with_force_and_nothing_else_is(
    config: Path, commands: Commands, finished_runs: Runs, tmp_path: Path
) -> None:
    run, out = finished_runs("v2"), tmp_path / "q"
    words = ["quantize", "--config", config, *model(run), "--scheme"]
    assert commands("v2", *words, "int8", "--out", out, cwd=tmp_path).returncode == 0
    before = snapshot(out)
    assert_one_line(
        commands("v2", *words, "nf4", "--out", out, cwd=tmp_path),
        r"q exists; choose another name, or replace it with --force",
    )
    assert snapshot(out) == before
    assert commands("v2", *words, "nf4", "--out", out, "--force", cwd=tmp_path).returncode == 0
    assert json.loads((out / "config.json").read_text())["quantization_config"]["load_in_4bit"]
    (out / "notes.txt").write_text("mine")
    done = commands("v2", *words, "int8", "--out", out, "--force", cwd=tmp_path)
    assert_one_line(done, r"q also holds notes\.txt, which would be lost; move it, or choose another folder")
    assert (out / "notes.txt").read_text() == "mine"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "diary.txt").write_text("dear diary")
    done = commands("v2", *words, "int8", "--out", mine, "--force", cwd=tmp_path)
    assert_one_line(
        done, r"mine holds something else than a quantized model; choose another folder with --out"
    )
    assert (mine / "diary.txt").read_text() == "dear diary"
    done = commands(
        "v2", "quantize", "--config", config, "--model", out, "--out", tmp_path / "r", cwd=tmp_path
    )
    assert_one_line(done, r"q is quantized already \(nf4\); quantize the model that it was made from")


WRONG: dict[str, tuple[list[str], str]] = {
    "unknown scheme": (["--scheme", "int3"], r"there is no scheme 'int3'; choose one of int8, int4, nf4"),
    "group size": (
        ["--scheme", "int4", "--group-size", "24"],
        r"groups of 24 do not divide the layers' inputs of 16, 32; choose --group-size 16",
    ),
    "groups of a scheme without": (
        ["--scheme", "int8", "--group-size", "8"],
        r"int8 has no groups; leave --group-size out",
    ),
    "a folder in a file": (
        ["--out", "{short}/sub"],
        r"short\.txt is a file, so that .*sub cannot be a folder; choose another with --out",
    ),
    "too little text": (
        ["--scheme", "gptq", "--calibration", "{short}"],
        r"the calibration text has \d+ tokens, too few for 128 sequences of 32; name a longer text, or choose --calibration-samples 2",
    ),
    "no such text": (["--scheme", "awq", "--calibration", "nowhere.txt"], r"no file nowhere\.txt; name"),
    "no such model": (["--model", "nowhere"], r"there is no model 'nowhere'; name"),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line_and_nothing_is_written(
    name: str, level: str, config: Path, commands: Commands, finished_runs: Runs, tmp_path: Path
) -> None:
    words, says = WRONG[name]
    if level == "v1" and words[:2] in (["--scheme", "gptq"], ["--scheme", "awq"]):
        says = rf"the libraries of level 1 have no {words[1]} here; choose one of int8, int4, nf4, or level 2 or 3"
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time there was a dog. " * 4)
    words = [word.format(short=short) for word in words]
    run = finished_runs(level)
    before = snapshot(tmp_path), snapshot(run)
    done = commands(
        level, "quantize", "--config", config, *model(run), "--out", tmp_path / "q", *words, cwd=tmp_path
    )
    assert_one_line(done, says)
    assert (snapshot(tmp_path), snapshot(run)) == before
