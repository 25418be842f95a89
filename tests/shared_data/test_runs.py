"""Run folders: what is current stays, what changed is redone, what fails or is killed damages nothing."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shared_data.errors import UserError
from shared_data.files import read_json, write_json
from shared_data.fingerprints import changed_inputs, stage_inputs
from shared_data.remembered_settings import open_run
from shared_data.runs import RunFolder
from shared_data.settings import Settings, load_settings


def make(tmp_path: Path, *overrides: str) -> RunFolder:
    return RunFolder("v2", load_settings("smoke", list(overrides)), tmp_path / "run")


def finish(run: RunFolder, *stages: str, content: str = "") -> RunFolder:
    for stage in stages:
        with run.writing(stage) as metrics:
            (run.stage(stage) / "result.txt").write_text(stage + content)
            metrics["seconds"] = 1.0
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_lives_under_its_level_and_configuration() -> None:
    assert RunFolder("v3", load_settings("smoke")).path == Path("runs/v3/smoke")


def test_a_finished_stage_is_current_until_one_of_its_settings_changes(tmp_path: Path) -> None:
    assert not make(tmp_path).is_current("data")
    finish(make(tmp_path), "data", "tokenizer", "pretrain")
    assert make(tmp_path).is_current("pretrain")
    assert make(
        tmp_path, "generate.top_k=5", "device=cuda", "pretrain.resume_from_checkpoint=false"
    ).is_current("pretrain")
    assert not make(tmp_path, "model.hidden_size=64").is_current("pretrain")
    assert make(tmp_path, "model.hidden_size=64").is_current("tokenizer")
    assert not make(tmp_path, "data.cleaning.min_words=3").is_current("pretrain")


def test_another_result_makes_what_rests_on_it_stale_and_the_same_does_not(tmp_path: Path) -> None:
    run = finish(make(tmp_path), "data", "tokenizer")
    finish(run, "data")
    assert run.is_current("tokenizer")
    finish(run, "data", content=" of other code")
    assert run.is_current("data")
    assert not run.is_current("tokenizer")
    assert list(run.metrics()) == ["data"]


@pytest.mark.parametrize(("content", "says"), [(None, "is missing"), (b"da", "is damaged: 2 bytes, not 4")])
def test_an_output_that_is_missing_or_damaged_is_named_and_made_again(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    run = finish(make(tmp_path), "data", "tokenizer")
    (run.path / "data" / "result.txt").unlink()
    if content is not None:
        (run.path / "data" / "result.txt").write_bytes(content)
    assert run.why_not_current("data") == f"its result.txt {says}"
    with pytest.raises(
        UserError, match=rf"stage data in .* its result.txt {says}; run `uv run v2 data --out .*` first"
    ):
        run.require("tokenizer")
    run.protect("data")
    finish(run, "data")
    assert run.is_current("tokenizer")


def test_checkpoints_logs_and_plots_may_be_deleted(tmp_path: Path) -> None:
    run = make(tmp_path)
    with run.writing("pretrain"):
        for name in ("state/step-1/model", "checkpoint-5/model", "metrics_log.jsonl", "loss.svg"):
            (run.stage("pretrain") / name).parent.mkdir(parents=True, exist_ok=True)
            (run.stage("pretrain") / name).touch()
    assert read_json(run.path / "pretrain" / "finished.json")["outputs"] == {}


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


def test_the_base_of_an_adapter_is_an_input_too(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    (base / "config.json").write_text("{}")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    run = finish(make(tmp_path, f"sft.model_name_or_path={adapter}"), "sft")
    assert run.is_current("sft")
    (base / "config.json").write_text("{ }")
    assert "base/config.json is not the one it was made with" in (run.why_not_current("sft") or "")


def test_a_missing_or_changed_earlier_stage_is_refused_with_the_command_to_run(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"pretrain needs the stage data .* not finished yet; run `uv run v2 data --out .*` first",
    ):
        make(tmp_path).require("pretrain")
    finish(make(tmp_path), "data", "tokenizer")
    make(tmp_path).require("pretrain")
    with pytest.raises(
        UserError,
        match=r"made with data\.seed = 0, not 3; use what it was made with, or run `uv run v2 data --force --out",
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


def test_results_and_checkpoints_of_other_settings_are_protected(tmp_path: Path) -> None:
    run = finish(make(tmp_path), "data", "tokenizer")
    make(tmp_path, "pretrain.max_steps=21").protect("pretrain")
    interrupt_training(run)
    run.protect("pretrain")
    for holds in ("an interrupted training", "a finished result"):
        with pytest.raises(
            UserError,
            match=rf"holds {holds}, but .*pretrain\.max_steps = 20, not 21; add --force to make it again, or .*--out",
        ):
            make(tmp_path, "pretrain.max_steps=21").protect("pretrain")
        finish(run, "pretrain")
    finish(run, "tokenizer", content=" of other code")
    run.protect("pretrain")


def test_an_interrupted_training_without_a_checkpoint_has_nothing_to_protect(tmp_path: Path) -> None:
    write_json(make(tmp_path).stage("pretrain") / "unfinished.json", {"inputs": {}})
    make(tmp_path).protect("pretrain")


def test_training_refused_before_it_touched_anything_keeps_its_last_result_current(tmp_path: Path) -> None:
    run = finish(make(tmp_path), "data", "tokenizer", "pretrain")
    before = contents(run.path)

    def refuse() -> None:
        with run.writing("pretrain"):
            raise UserError("corpus too small; take a larger one")

    with pytest.raises(UserError):
        refuse()
    assert contents(run.path) == before


def test_a_missing_or_older_metrics_file_is_rebuilt_by_the_next_command(tmp_path: Path) -> None:
    run = finish(make(tmp_path), "data", "tokenizer", "pretrain", "evaluate")
    for damage in (Path.unlink, Path.touch, lambda path: write_json(path, {"data": {"seconds": 2.0}})):
        damage(run.path / "metrics.json")
        with run.locked():
            numbers = read_json(run.path / "metrics.json")
        assert (
            numbers
            == run.metrics()
            == {stage: {"seconds": 1.0} for stage in ("data", "tokenizer", "pretrain", "evaluate")}
        )


def killed_before_write(number: int, work: Callable[[], object]) -> bool:
    """Do the work in a process that vanishes before its n-th change of a file; whether it came so far."""
    child = os.fork()
    if child == 0:
        changes = 0

        def count(event: str, arguments: tuple) -> None:
            nonlocal changes
            writes = (
                event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            )
            if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
                changes += 1
                if changes == number:
                    os._exit(9)

        sys.addaudithook(count)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize(
    ("stage", "override"), [("data", "data.seed=3"), ("pretrain", "pretrain.max_steps=21")]
)
def test_killed_between_any_two_writes_nothing_is_lost(tmp_path: Path, stage: str, override: str) -> None:
    start = finish(make(tmp_path), "data", "tokenizer", "pretrain", "evaluate")
    number, ends = 1, set()
    while True:
        folder = Path(shutil.copytree(start.path, tmp_path / str(number)))
        run = open_run("v2", None, [override], folder)[0]
        killed = killed_before_write(number, lambda run=run: finish(run, stage, content=override))
        run = open_run("v2", out=folder)[0]
        with run.locked():
            run.protect(stage)  # what the folder remembers fits what it holds
            assert run.is_current(stage) or run.is_interrupted(stage)
            assert read_json(folder / "metrics.json") == run.metrics()
        assert not list(folder.rglob(".*.*"))
        ends.add((run.settings == start.settings, run.is_current(stage)))
        if not killed:
            break
        number += 1
    assert number > 10
    assert {(True, True), (False, True)} <= ends


def test_what_a_killed_first_command_was_made_with_is_remembered(tmp_path: Path) -> None:
    for stage in ("data", "pretrain"):
        run = open_run("v2", "smoke", ["data.seed=3"], tmp_path / stage)[0]

        def work(run: RunFolder = run, stage: str = stage) -> None:
            with run.writing(stage):
                os._exit(9)

        killed_before_write(0, work)
        assert open_run("v2", out=tmp_path / stage)[0].settings == run.settings


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


def test_a_training_that_is_done_again_keeps_nothing_that_only_the_last_one_had(tmp_path: Path) -> None:
    run = make(tmp_path)
    for names in (("model.txt", "completions.json"), ("model.txt",)):
        with run.writing("dpo"):
            for name in names:
                (run.stage("dpo") / name).write_text(f"{names}")
            (run.stage("dpo") / "checkpoint-5").mkdir(exist_ok=True)
            (run.stage("dpo") / "checkpoint-5" / "state.json").touch()
    assert set(contents(run.path / "dpo")) == {"model.txt", "finished.json", "checkpoint-5/state.json"}


def test_a_command_names_the_configuration_only_where_it_is_that_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunFolder("v2", load_settings("smoke"))
    assert run.command("chat") == "v2 chat --config smoke"
    run.configuration = load_settings(
        "smoke", ["pretrain.max_steps=3"]
    )  # began with another file of this name
    assert run.command("chat") == "v2 chat --out runs/v2/smoke"


def test_a_setting_that_is_newer_than_a_result_counts_as_its_default() -> None:
    """Else every new setting would make the runs of an earlier version useless."""
    now = stage_inputs("v2", Settings(), "data")
    before = {key: value for key, value in now.items() if key != "data.on_bad_record"}
    assert changed_inputs(before, now) == []
    skipping = now | {"data.on_bad_record": "skip"}
    assert changed_inputs(before, skipping) == ["it was made with data.on_bad_record = None, not skip"]
