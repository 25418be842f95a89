"""Run folders: what is current stays, what changed is redone, what fails or is killed damages nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared_data.errors import UserError
from shared_data.files import read_json
from shared_data.runs import RunFolder
from shared_data.settings import load_settings


def make(tmp_path: Path, *overrides: str) -> RunFolder:
    return RunFolder("v2", load_settings("smoke", list(overrides)), tmp_path / "run")


def finish(run: RunFolder, *stages: str) -> RunFolder:
    for stage in stages:
        with run.writing(stage):
            (run.stage(stage) / "result.txt").write_text(stage)
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_lives_under_its_level_and_configuration() -> None:
    assert RunFolder("v3", load_settings("smoke")).path == Path("runs/v3/smoke")


def test_a_finished_stage_is_current_until_one_of_its_settings_changes(tmp_path: Path) -> None:
    assert not make(tmp_path).is_current("data")
    finish(make(tmp_path), "data", "tokenizer", "pretrain")
    assert make(tmp_path).is_current("pretrain")
    assert make(tmp_path, "generate.top_k=5", "device=cuda", "pretrain.resume=false").is_current("pretrain")
    assert not make(tmp_path, "model.hidden_size=64").is_current("pretrain")
    assert make(tmp_path, "model.hidden_size=64").is_current("tokenizer")
    assert not make(tmp_path, "data.cleaning.min_words=3").is_current("pretrain")


def test_a_stage_that_is_done_again_makes_what_rests_on_it_stale(tmp_path: Path) -> None:
    run = finish(make(tmp_path), "data", "tokenizer")
    finish(run, "data")
    assert run.is_current("data")
    assert not run.is_current("tokenizer")


def test_the_result_of_another_level_in_the_same_folder_is_not_current(tmp_path: Path) -> None:
    run = finish(make(tmp_path), "data")
    assert not RunFolder("v3", run.settings, run.path).is_current("data")


@pytest.mark.parametrize("source", ["corpus", "corpus/a.txt", "corpus/*.txt"])
def test_a_local_file_that_changed_is_noticed_by_path_size_and_time(tmp_path: Path, source: str) -> None:
    (tmp_path / "corpus").mkdir()
    file = tmp_path / "corpus" / "a.txt"
    file.write_text("one")
    run = finish(make(tmp_path, f"data.source={tmp_path / source}"), "data")
    assert run.is_current("data")
    file.write_text("two")
    os.utime(file, ns=(0, 1))
    assert not run.is_current("data")
    assert "a.txt is not the one it was made with" in (run.why_not_current("data") or "")


def test_a_missing_or_changed_earlier_stage_is_refused_with_the_command_to_run(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"pretrain needs the stage data .* not finished yet; run `v2 data` first"
    ):
        make(tmp_path).require("pretrain")
    finish(make(tmp_path), "data", "tokenizer")
    make(tmp_path).require("pretrain")
    with pytest.raises(
        UserError,
        match=r"made with data\.seed = 0, not 3; use the options it was made with, or run `v2 data`",
    ):
        make(tmp_path, "data.seed=3").require("pretrain")


@pytest.mark.parametrize(
    "error", [UserError("bad file; correct it"), OSError(28, "No space"), KeyboardInterrupt(), RuntimeError()]
)
@pytest.mark.parametrize("stage", ["data", "evaluate"])
def test_a_stage_that_fails_leaves_its_last_result_as_it_was(
    tmp_path: Path, stage: str, error: BaseException
) -> None:
    run = finish(make(tmp_path), "data", "tokenizer", "pretrain", "evaluate")
    before = contents(run.path)

    def fail() -> None:
        with run.writing(stage):
            (run.stage(stage) / "result.txt").write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert contents(run.path) == before
    assert run.is_current(stage)


def test_a_result_that_is_done_again_holds_nothing_of_the_old_one(tmp_path: Path) -> None:
    run = finish(make(tmp_path), "data")
    with run.writing("data"):
        (run.stage("data") / "other.txt").write_text("new")
    assert set(contents(run.path / "data")) == {"other.txt", "finished.json"}


def interrupt_training(run: RunFolder) -> None:
    def interrupt() -> None:
        with run.writing("pretrain"):
            (run.stage("pretrain") / "state.txt").write_text("step 5")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_training_keeps_its_state_when_it_is_interrupted_and_counts_as_unfinished(tmp_path: Path) -> None:
    run = finish(make(tmp_path), "data", "tokenizer", "pretrain")
    interrupt_training(run)
    assert (run.path / "pretrain" / "state.txt").read_text() == "step 5"
    assert run.is_interrupted("pretrain")
    assert not run.is_current("pretrain")
    finish(run, "pretrain")
    assert not run.is_interrupted("pretrain")
    assert run.is_current("pretrain")


def test_an_interrupted_training_is_not_replaced_by_one_with_other_settings(tmp_path: Path) -> None:
    run = finish(make(tmp_path), "data", "tokenizer")
    interrupt_training(run)
    run.protect_interrupted("pretrain")
    other = make(tmp_path, "pretrain.steps=21")
    with pytest.raises(
        UserError, match=r"interrupted pretrain, but .*pretrain\.steps = 20, not 21; .*--force"
    ):
        other.protect_interrupted("pretrain")


def test_training_refused_before_it_touched_anything_keeps_its_last_result_current(tmp_path: Path) -> None:
    run = finish(make(tmp_path), "data", "tokenizer", "pretrain")
    before = contents(run.path)

    def refuse() -> None:
        with run.writing("pretrain"):
            raise UserError("corpus too small; take a larger one")

    with pytest.raises(UserError):
        refuse()
    assert contents(run.path) == before


def test_settings_of_a_finished_run_reproduce_it(tmp_path: Path) -> None:
    run = finish(make(tmp_path, "data.seed=3"), "data")
    assert load_settings(run.path / "settings.toml") == run.settings


def test_metrics_hold_finished_stages_in_order_and_drop_those_that_rest_on_an_old_result(
    tmp_path: Path,
) -> None:
    run = make(tmp_path)
    for stage in ("pretrain", "data", "tokenizer", "pretrain", "evaluate"):
        run.record(stage, {"seconds": 1.0})
    assert list(read_json(run.path / "metrics.json")) == ["data", "tokenizer", "pretrain", "evaluate"]
    run.record("tokenizer", {"seconds": 2.0})
    assert run.metrics() == {"data": {"seconds": 1.0}, "tokenizer": {"seconds": 2.0}}


def test_two_processes_cannot_write_into_one_run_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    run = make(tmp_path)
    hold = (
        "import sys, time; from pathlib import Path; from shared_data.runs import RunFolder; from shared_data.settings import load_settings\n"
        f"with RunFolder('v2', load_settings('smoke'), Path({str(run.path)!r})).locked(): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"another process writes into .*; wait for it"), run.locked():
            pass
        other.kill()
    with run.locked():
        pass
