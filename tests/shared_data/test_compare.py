"""The command `compare` around stages that only pretend to train: which choices there are, what is trained when, tables, mistakes."""

import json
import re
import signal
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from shared_data.command_line import build_app
from shared_data.comparison.choices import folder_of, read_choices
from shared_data.comparison.command import add_compare
from shared_data.comparison.table import Row, notes, print_table, table, write_comparison
from shared_data.errors import StageError, UserError
from shared_data.files import write_json
from shared_data.model_files.config import ModelConfig
from shared_data.runs import RunFolder
from shared_data.settings import Settings

trained: list[str] = []  # stage and folder, in order
failures: dict[str, BaseException] = {}  # by folder: what its training raises, once
HEADS = ("--vary", "model.num_key_value_heads=4,2,1")


def stage_of(name: str) -> Any:
    def do_stage(settings: Settings, run: RunFolder) -> dict[str, float]:
        trained.append(f"{name} {run.path.name}")
        (run.stage(name) / f"{name}.txt").write_text(f"made by {run.path.name}")
        return {"documents": 1}

    return do_stage


prepare_documents, prepare_tokens = stage_of("data"), stage_of("tokenizer")


def pretrain(settings: Settings, run: RunFolder) -> dict[str, float]:
    """Bits per byte are 0.25 and a tenth for each key-value head, and a hundredth for each seed."""
    trained.append(f"pretrain {run.path.name}")
    if run.path.name in failures:
        raise failures.pop(run.path.name)
    write_json(run.stage("pretrain") / "config.json", ModelConfig.from_settings(settings.model, 512).to_hf())
    heads, section = settings.model.num_key_value_heads or 4, settings.pretrain
    bits = 0.25 + heads / 10 + section.seed / 100
    numbers = {"bits_per_byte": bits, "floor_bits_per_byte": 0.25, "tokens": 256 * section.max_steps}
    return {**numbers, "tokens_per_second": 1000.0 * heads}


def bytes_per_token(config: ModelConfig) -> int:
    return 8 * config.num_key_value_heads * config.head_dim


def compare(root: Path, *words: str) -> int:
    """Run `compare` of a smoke configuration in this process; the exit code."""
    trained.clear()
    stages = {
        name: f"{__name__}:{function}"
        for name, function in (
            ("data", "prepare_documents"),
            ("tokenizer", "prepare_tokens"),
            ("pretrain", "pretrain"),
        )
    }
    app = build_app("v2", "A level for tests.", stages)
    add_compare(app, "v2", stages, f"{__name__}:bytes_per_token")
    try:
        app(["compare", "--config", "smoke", "--out", str(root), *words])
    except SystemExit as leave:
        return int(leave.code or 0)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a process that leaves ignores it
    return 0


def choices(*vary: str, named: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    return {choice.name: choice.assignments for choice in read_choices(list(vary), list(named))}


def test_two_settings_of_two_and_three_values_are_six_choices() -> None:
    found = choices("pretrain.optim=adamw,muon", "model.num_key_value_heads=4, 2, 1")
    assert list(found) == [
        "optim=adamw, num_key_value_heads=4",
        "optim=adamw, num_key_value_heads=2",
        "optim=adamw, num_key_value_heads=1",
        "optim=muon, num_key_value_heads=4",
        "optim=muon, num_key_value_heads=2",
        "optim=muon, num_key_value_heads=1",
    ]
    assert found["optim=muon, num_key_value_heads=2"] == (
        "pretrain.optim=muon",
        "model.num_key_value_heads=2",
    )
    assert folder_of("optim=muon, num_key_value_heads=2") == "optim=muon-num_key_value_heads=2"


def test_commas_and_spaces_inside_brackets_and_quotes_belong_to_the_value() -> None:
    assert choices('model.layer_types=["full_attention", "sliding_attention"],["sliding_attention"]') == {
        "layer_types=full_attention+sliding_attention": (
            'model.layer_types=["full_attention", "sliding_attention"]',
        ),
        "layer_types=sliding_attention": ('model.layer_types=["sliding_attention"]',),
    }
    assert list(choices('pretrain.sample_prompt="a, b",c')) == ["sample_prompt=a, b", "sample_prompt=c"]
    assert choices("a.seed=1,2", "b.seed=3,4").popitem() == ("a.seed=2, b.seed=4", ("a.seed=2", "b.seed=4"))


def test_named_choices_are_alternatives_and_are_combined_with_varied_settings() -> None:
    named = (
        "dense:",
        'MoE: model.model_type=mixtral  model.mlp_only_layers=[0, 1] pretrain.sample_prompt="One day"',
    )
    found = choices("pretrain.optim=adamw,muon", named=named)
    assert list(found) == ["dense, optim=adamw", "dense, optim=muon", "MoE, optim=adamw", "MoE, optim=muon"]
    assert found["dense, optim=muon"] == ("pretrain.optim=muon",)
    own = ("model.model_type=mixtral", "model.mlp_only_layers=[0, 1]", 'pretrain.sample_prompt="One day"')
    assert found["MoE, optim=adamw"] == (*own, "pretrain.optim=adamw")


def test_corpus_and_tokenizer_are_made_once_and_each_choice_is_a_whole_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tmp_path, *HEADS) == 0
    first, *others = [f"num_key_value_heads={heads}" for heads in (4, 2, 1)]
    assert trained == [
        f"data {first}",
        f"tokenizer {first}",
        *(f"pretrain {name}" for name in (first, *others)),
    ]
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("== compare ")] == [
        f"== compare {number}/3: {name}" for number, name in enumerate((first, *others), start=1)
    ]
    for name in others:
        file = tmp_path / name / "data" / "data.txt"
        assert file.samefile(tmp_path / first / "data" / "data.txt"), "it takes no space twice"
        assert set(json.loads((tmp_path / name / "metrics.json").read_text())) == {
            "data",
            "tokenizer",
            "pretrain",
        }
        assert f"num_key_value_heads = {name[-1]}\n" in (tmp_path / name / "settings.toml").read_text()


def test_a_choice_that_varies_the_tokenizer_has_its_own_on_the_same_corpus(tmp_path: Path) -> None:
    assert (
        compare(tmp_path, "--vary", "tokenizer.vocab_size=300,400", "--vary", "pretrain.optim=adamw,muon")
        == 0
    )
    made = [work for work in trained if not work.startswith("pretrain")]
    small, large = ("vocab_size=300-optim=adamw", "vocab_size=400-optim=adamw")
    assert made == [f"data {small}", f"tokenizer {small}", f"tokenizer {large}"]


def test_the_run_of_the_configuration_lends_its_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compare(Path("first"), *HEADS) == 0
    Path("first/num_key_value_heads=4").rename("elsewhere")
    Path("runs/v2").mkdir(parents=True)
    Path("elsewhere").rename("runs/v2/smoke")
    assert compare(Path("second"), *HEADS) == 0
    assert [work for work in trained if not work.startswith("pretrain")] == []
    # A lent result that is damaged is not taken.
    Path("runs/v2/smoke/data/data.txt").write_text("short")
    assert compare(Path("third"), *HEADS, "--set", "pretrain.max_steps=3") == 0
    assert trained[0] == "data num_key_value_heads=4"


def test_only_what_is_new_or_changed_or_forced_is_trained(tmp_path: Path) -> None:
    def again(*words: str) -> list[str]:
        assert compare(tmp_path, *words) == 0
        return trained

    assert len(again(*HEADS)) == 5
    assert again(*HEADS) == []
    assert again("--vary", "model.num_key_value_heads=1,2") == []
    assert again("--choice", "a:", "--choice", "b: pretrain.optim=muon") == ["pretrain a", "pretrain b"]
    changed = ("--set", "pretrain.max_steps=7")
    assert again(*HEADS, *changed) == [f"pretrain num_key_value_heads={heads}" for heads in (4, 2, 1)]
    assert again(*HEADS, *changed) == []
    assert len(again(*HEADS, *changed, "--force")) == 3
    everything = again(*HEADS, "--set", "data.seed=5")
    assert [work.split()[0] for work in everything] == ["data", "tokenizer", *["pretrain"] * 3]


def test_ctrl_c_names_the_command_that_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failures["num_key_value_heads=2"] = KeyboardInterrupt()
    assert compare(tmp_path, *HEADS, "--force") == 2
    err = capsys.readouterr().err
    hint = f"uv run v2 compare --config smoke --out {tmp_path} --vary model.num_key_value_heads=4,2,1"
    assert err == f"interrupted: finished stages and checkpoints are kept; `{hint}` continues from there\n"
    text = (tmp_path / "compare.md").read_text()
    assert "1 of 3 trainings have finished" in text
    assert compare(tmp_path, *HEADS) == 0
    assert trained == ["pretrain num_key_value_heads=2", "pretrain num_key_value_heads=1"]
    assert "have finished" not in (tmp_path / "compare.md").read_text()


def test_a_training_that_diverges_keeps_no_other_from_being_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failures["num_key_value_heads=4"] = StageError("training diverged; lower it")
    assert compare(tmp_path, *HEADS) == 2
    assert len([work for work in trained if work.startswith("pretrain")]) == 3
    out, err = capsys.readouterr()
    assert err == "error: 1 of 3 trainings failed; num_key_value_heads=4: training diverged; lower it\n"
    assert re.search(r"num_key_value_heads=4 +– +– +– +– +–\n", out)
    assert "num_key_value_heads=4 failed: training diverged" in (tmp_path / "compare.md").read_text()
    assert (
        json.loads((tmp_path / "compare.json").read_text())["choices"][0]["error"]
        == "training diverged; lower it"
    )


def test_table_numbers_and_plot_show_each_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(tmp_path, "--vary", "model.num_key_value_heads=4,1") == 0
    page = (tmp_path / "compare.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| num_")]
    # smoke: D = 8, so 1 head instead of 4 saves 2 · 3 · 8 · 32 weights in each of two layers.
    assert rows[0] == ["num_key_value_heads=4", "0.4000", "4,000", "43,168", "43,168", "256"]
    assert rows[1] == [
        "num_key_value_heads=1",
        "0.1000",
        "1,000",
        f"{43_168 - 2 * 2 * 3 * 8 * 32:,}",
        "40,096",
        "64",
    ]
    numbers = json.loads((tmp_path / "compare.json").read_text())
    assert numbers["choices"][1]["settings"] == {"model.num_key_value_heads": 1}
    assert numbers["choices"][1]["runs"][0]["bits_per_byte_above_floor"] == pytest.approx(0.1)
    picture = (tmp_path / "compare.svg").read_text()
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    letters = re.findall(r">([^<>\n]+)</text>", picture)
    for text in (
        "num_key_value_heads=4",
        "num_key_value_heads=1",
        "above the floor",
        "tokens/s",
        "0.1000",
        "40,096",
        "64",
    ):
        assert text in letters
    out = capsys.readouterr().out
    assert re.search(r"^   num_key_value_heads=4 +0\.4000 +4,000 +43,168 +43,168 +256$", out, re.MULTILINE)
    assert "One seed each" in out


def test_seeds_give_a_mean_and_a_spread(tmp_path: Path) -> None:
    assert compare(tmp_path, "--vary", "model.num_key_value_heads=4,1", "--seeds", "0,2,4") == 0
    assert [work for work in trained if "=1" in work] == [
        f"pretrain num_key_value_heads=1-seed-{seed}" for seed in (0, 2, 4)
    ]
    page = (tmp_path / "compare.md").read_text()
    # 0.10, 0.12 and 0.14 above the floor: mean 0.12, standard deviation √((0.02² + 0.02²) / 2) = 0.02.
    assert "| num_key_value_heads=1 | 0.1200 ± 0.0200 | 1,000 | 40,096 |" in page
    assert "One seed" not in page
    assert [
        run["seed"] for run in json.loads((tmp_path / "compare.json").read_text())["choices"][0]["runs"]
    ] == [0, 2, 4]


def result(**numbers: float) -> dict[str, Any]:
    return {"folder": "x", "seed": 0, "bits_per_byte": 2.0, "tokens": 100, **numbers}


def test_without_a_floor_bits_per_byte_are_shown_and_unequal_tokens_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = read_choices(["pretrain.max_steps=1,2"], [])
    rows = [Row(first, [result()], 0), Row(second, [result(tokens=200)], 0)]
    assert table(rows)[0][1] == "bits per byte"
    assert table(rows)[1][:2] == ["max_steps=1", "2.0000"]
    assert any("different numbers of tokens" in note for note in notes(rows))
    assert not any("different numbers of tokens" in note for note in notes([rows[0], rows[0]]))
    print_table(rows)
    assert "max_steps=2  " in capsys.readouterr().out
    write_comparison([Row(first, [], 1), Row(second, [], 1)], tmp_path, "smoke", "uv run v2 compare")
    assert not (tmp_path / "compare.svg").exists(), "there is nothing to draw yet"


MISTAKES = {
    "nothing to compare": ([], "nothing to compare; add for example --vary"),
    "one choice": (["--choice", "a:"], "nothing to compare; "),
    "no values": (["--vary", "model.num_key_value_heads"], "is not KEY=VALUE,VALUE,…; write for example"),
    "values left out": (
        ["--vary", "model.num_key_value_heads="],
        "is not KEY=VALUE,VALUE,…; write for example",
    ),
    "a value left out": (
        ["--vary", "model.num_key_value_heads=1,,2"],
        "is not KEY=VALUE,VALUE,…; write for example",
    ),
    "one value": (
        ["--vary", "pretrain.optim=muon"],
        "has one value; give two or more .* or use --set pretrain.optim=muon",
    ),
    "open bracket": (["--vary", 'model.layer_types=["full_attention",1'], "without its other half; add"),
    "no name": (["--choice", "model.hidden_size=8", "--choice", "b:"], "has no name; write for example"),
    "no assignment": (
        ["--choice", "a: muon", "--choice", "b:"],
        "'muon' is not KEY=VALUE; put a value that holds spaces",
    ),
    "unknown setting": (
        ["--vary", "model.num_key_value_head=1,2"],
        "choice 'num_key_value_head=1': unknown setting .*; did you mean",
    ),
    "unknown section": (["--vary", "modell.hidden_size=8,16"], "unknown setting 'modell.*; did you mean"),
    "a value that is none": (
        ["--vary", "pretrain.optim=adamw,sgd"],
        "choice 'optim=sgd': bad setting pretrain.optim.*; correct",
    ),
    "sizes": (
        ["--vary", "model.num_key_value_heads=1,3"],
        "choice 'num_key_value_heads=3': .* is not a multiple .*; change",
    ),
    "a family without": (
        ["--choice", "a:", "--choice", "b: model.num_local_experts=4"],
        "choice 'b': llama has no num_local_experts; use",
    ),
    "twice": (
        ["--vary", "model.num_key_value_heads=1,2,1"],
        "the choice 'num_key_value_heads=1' is there twice; take",
    ),
    "the same settings": (
        ["--choice", "a:", "--choice", "b: model.num_key_value_heads=2"],
        "'a' and 'b' have the same settings; take",
    ),
    "the same folder": (
        ["--choice", "a b: pretrain.optim=muon", "--choice", "A-b:"],
        "would have the same folder; give",
    ),
    "the file of the numbers": (
        ["--choice", "a:", "--choice", "Compare.json: kernels=plain"],
        "a choice cannot be called",
    ),
    "the border of a table": (
        ["--choice", "a:", "--choice", "b|c: kernels=plain"],
        r"cannot be called 'b\|c'",
    ),
    "a long name": (
        ["--vary", f"tokenizer.load=/a,/{'b' * 120}"],
        "longer than 120 characters; give the choice a short one",
    ),
    "set twice": (
        ["--choice", "a:", "--choice", "b: pretrain.optim=muon", "--vary", "pretrain.optim=adamw,muon"],
        "sets pretrain.optim twice; name",
    ),
    "no effect": (["--vary", "dpo.beta=0.1,0.5"], "dpo.beta changes nothing in pretraining, .*; vary"),
    "no effect either": (
        ["--vary", "pretrain.save_steps=1,2"],
        "pretrain.save_steps changes nothing in pretraining",
    ),
    "seeds": ([*HEADS, "--seeds", "0,x"], "--seeds '0,x' are not different whole numbers .*; write"),
    "equal seeds": ([*HEADS, "--seeds", "1,1"], "are not different whole numbers .*; write"),
    "seeds twice": (
        ["--vary", "pretrain.seed=0,1", "--seeds", "0,1"],
        "sets pretrain.seed; leave that out, or --seeds",
    ),
    "another device": ([*HEADS, "--device", "tpu"], "device 'tpu' is not one device; use"),
    "no configuration": ([*HEADS, "--config", "nowhere"], "no configuration 'nowhere'; use"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_made(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, line = MISTAKES[name]
    assert compare(tmp_path / "root", *words) == 2
    out, err = capsys.readouterr()
    assert re.match(f"error: .*{line}", err), err
    assert err.count("\n") == 1
    assert (out, trained, list(tmp_path.iterdir())) == ("", [], [])


def test_folders_that_are_not_of_a_comparison_lose_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "root" / "num_key_value_heads=2" / "data" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert compare(tmp_path / "root", *HEADS) == 2
    assert f"{mine} is not of a run; move it elsewhere" in capsys.readouterr().err
    assert (trained, mine.read_text()) == ([], "mine")
    assert compare(tmp_path / "compared", *HEADS) == 0
    assert compare(tmp_path / "compared" / "num_key_value_heads=4", *HEADS) == 2
    assert "is the folder of a run, not of a comparison; choose another" in capsys.readouterr().err


def test_a_choice_without_a_name_for_a_folder_is_refused() -> None:
    with pytest.raises(UserError, match="has no name; write"):
        read_choices([], ["?!: pretrain.optim=muon", "b:"])
