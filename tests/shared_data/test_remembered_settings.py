"""A run folder remembers its settings: later commands inherit them, and each change is named."""

from pathlib import Path

import pytest

from shared_data.errors import UserError
from shared_data.files import write_json
from shared_data.remembered_settings import open_run
from shared_data.runs import RunFolder
from shared_data.settings import load_settings


def begin(folder: Path, config: str | None = "smoke", *overrides: str) -> RunFolder:
    run, _ = open_run("v2", config, list(overrides), folder)
    with run.writing("data") as metrics:
        metrics["seconds"] = 1.0
    return run


def test_a_later_command_inherits_the_settings_and_names_each_change(tmp_path: Path) -> None:
    begin(tmp_path, "smoke", "data.seed=3", "generate.top_k=5")
    run, changes = open_run("v2", out=tmp_path)
    assert (run.settings.name, run.settings.data.seed, run.settings.generate.top_k) == ("smoke", 3, 5)
    assert changes == []
    run, changes = open_run("v2", None, ["data.seed=4", "generate.top_k=none", "sft.max_steps=10"], tmp_path)
    assert changes == [
        f"settings of {tmp_path}: data.seed = 4 (was 3)",
        f"settings of {tmp_path}: generate.top_k = None (was 5)",
    ]


def test_runs_under_their_configuration_inherit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for config, name in (("smoke", "smoke"), (None, "tiny"), (None, "mine")):
        overrides = ["data.seed=3"] if name != "mine" else ["data.seed=3", "name=mine"]
        run = open_run("v2", config, overrides)[0]
        assert run.path == Path("runs/v2") / name
        run = begin(run.path, config, *overrides)
        assert open_run("v2", config, overrides[1:])[0].settings == run.settings


def test_another_configuration_is_a_change_and_what_was_set_stays(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("[pretrain]\nmax_steps = 5\nseed = 2\n")
    begin(tmp_path / "run", str(config), "data.seed=3", "pretrain.max_steps=6")
    assert open_run("v2", str(config), out=tmp_path / "run")[1] == []
    config.write_text("[pretrain]\nmax_steps = 5\nseed = 4\n")
    run, changes = open_run("v2", str(config), out=tmp_path / "run")
    assert changes == [f"settings of {tmp_path / 'run'}: pretrain.seed = 4 (was 2)"]
    assert (run.settings.data.seed, run.settings.pretrain.max_steps) == (3, 6)


def test_a_wrong_setting_is_not_remembered_and_an_interrupted_one_is(tmp_path: Path) -> None:
    for error, remembered in ((UserError("no such file; correct it"), 0), (KeyboardInterrupt(), 3)):
        run, _ = open_run("v2", "smoke", ["data.seed=3"], tmp_path / type(error).__name__)
        with pytest.raises(type(error)), run.writing("data"):
            raise error
        assert open_run("v2", "smoke", out=run.path)[0].settings.data.seed == remembered


def test_hints_run_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for config, out, command in (
        (None, None, "v2 sft"),
        ("smoke", None, "v2 sft --config smoke"),
        ("smoke", Path("my runs"), "v2 sft --out 'my runs'"),
    ):
        assert open_run("v2", config, out=out)[0].command("sft") == command
    (tmp_path / "mine.toml").touch()
    assert open_run("v2", "mine.toml")[0].command("sft") == "v2 sft --out runs/v2/mine"


def test_a_folder_of_another_version_is_refused_in_one_line_that_says_so(tmp_path: Path) -> None:
    for number, record in enumerate(
        ({"id": "x", "time": 1.0, "inputs": {}}, [], {"id": "x", "inputs": 1, "outputs": {}, "metrics": {}})
    ):
        run = begin(tmp_path / str(number))
        write_json(run.path / "data" / "finished.json", record)
        with pytest.raises(
            UserError,
            match=r"data/finished.json is .*of another version of this project; delete .*data to make",
        ):
            open_run("v2", out=run.path)
        assert open_run("v2", out=run.path, force=True)[0].settings == run.settings
    run = begin(tmp_path / "settings")
    (run.path / "settings.toml").write_text("[pretrain]\nstepps = 3\n")
    with pytest.raises(
        UserError,
        match=r"another version of this project, or .* damaged \(unknown setting 'pretrain.stepps'.*\); start it again with `run --force`",
    ):
        open_run("v2", "smoke", out=run.path)
    assert open_run("v2", "smoke", out=run.path, force=True)[0].settings == load_settings("smoke")


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file is a file, not the folder of a run; choose"):
        open_run("v2", out=tmp_path / "file")


def test_code_that_a_configuration_names_is_asked_for_on_the_command_line(tmp_path: Path) -> None:
    """A configuration from elsewhere must not run a file; what was asked for once, the run remembers."""
    config, code = tmp_path / "theirs.toml", f"{tmp_path / 'rewards.py'}:f"
    for stage in ("ppo", "grpo"):
        run = tmp_path / stage
        config.write_text(f'[{stage}]\nreward = "{code}"\n')
        says = rf"names code that would be run: {stage}\.reward = {code}; if you trust .* --set {stage}\.reward={code}$"
        with pytest.raises(UserError, match=says):
            open_run("v2", str(config), out=run)
        assert not run.exists()
        begin(run, str(config), f"{stage}.reward={code}")
        assert getattr(open_run("v2", out=run)[0].settings, stage).reward == code
        assert getattr(open_run("v2", str(config), out=run)[0].settings, stage).reward == code
        begin(tmp_path / f"{stage}-plain", "smoke")
        with pytest.raises(UserError, match=says):
            open_run("v2", str(config), out=tmp_path / f"{stage}-plain")
