"""`--model X` is an existing path, else a stage of the run, else a name on the hub."""

from pathlib import Path

import pytest

from shared_data.errors import UserError
from shared_data.model_names import resolve_model
from shared_data.runs import RunFolder
from shared_data.settings import load_settings


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    run = RunFolder("v2", load_settings("smoke"))
    for folder in (run.stage("pretrain"), run.stage("sft"), Path("gpt2"), Path("owner/name")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").touch()
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").touch()
    return run


def test_a_path_comes_before_a_stage_and_a_stage_before_the_hub(run: RunFolder) -> None:
    assert resolve_model(run, "sft") == run.path / "sft"
    for path in ("gpt2", "./gpt2", "adapter", "owner/name", run.path / "sft"):
        assert resolve_model(run, path) == Path(path)
    Path("gpt2").rename("sft")
    assert resolve_model(run, "sft") == Path("sft")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "dpo",
            r"no model in runs/v2/smoke/dpo; run `uv run v2 run --config smoke` first, or name a folder with --model",
        ),
        (
            "reward",
            r"a reward model scores and does not write; choose --model pretrain, sft, dpo, ppo, grpo, or a folder",
        ),
        (
            "openai-community/gpt2",
            r"there is no folder openai-community/gpt2 here, and the hub cannot be reached .*; connect, or download .*--model DIR",
        ),
        (
            "./sft",
            r"there is no model './sft'; name a stage \(pretrain, sft, .*\), a folder, or owner/name of the hub",
        ),
        ("runs", r"runs is no model: it has no config.json; name a Hugging Face folder or a PEFT adapter"),
    ],
)
def test_a_name_that_leads_to_no_model_is_one_line(run: RunFolder, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_model(run, name)
