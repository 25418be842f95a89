"""The pipeline does what `make` would: each stage once, again when its inputs changed, and what rests on it after it."""

import shutil
from pathlib import Path

import pytest

from shared_data.errors import UserError
from shared_data.files import write_json
from shared_data.pipeline import run_pipeline, run_stage
from shared_data.runs import RunFolder
from shared_data.settings import Settings, load_settings
from shared_data.stages import STAGES
from shared_data.summary import print_heading

FUNCTIONS = {name: f"{__name__}:do_{name}" for name in STAGES}
resumed: list[bool] = []


def do_data(settings: Settings, run: RunFolder) -> dict[str, float]:
    run.documents("train").write_text("{}")
    return {"documents": 3, "floor_bits_per_byte": None, "ratio": float("nan")}  # type: ignore[dict-item]


def do_tokenizer(settings: Settings, run: RunFolder) -> dict[str, float]:
    assert run.documents("train").read_text() == "{}"
    run.tokens("train").write_text("ids")
    return {"tokens": 5}


def do_pretrain(settings: Settings, run: RunFolder) -> dict[str, float]:
    resumed.append(settings.pretrain.resume_from_checkpoint)
    (run.model() / "config.json").write_text("{}")
    return {"loss": 1.5, "seconds": 99.0}


def do_sft(settings: Settings, run: RunFolder) -> dict[str, float]:
    (run.model("sft") / "config.json").write_text("{}")
    return {"qa_accuracy": 0.5}


def do_reward(settings: Settings, run: RunFolder) -> dict[str, float]:
    return {"accuracy": 0.75}


def do_dpo(settings: Settings, run: RunFolder) -> dict[str, float]:
    return {"before": 0.4, "after": 0.6, "kl": 1.0}


do_ppo = do_grpo = do_dpo


def do_evaluate(settings: Settings, run: RunFolder) -> dict[str, float]:
    return {"perplexity": 2.0}


def do_benchmark(settings: Settings, run: RunFolder) -> dict[str, float]:
    return {"story_world_acc": 0.5}


def do_generate(settings: Settings, run: RunFolder) -> dict[str, float]:
    write_json(run.stage("generate") / "samples.json", [{"prompt": "Once", "text": " upon\na time"}])
    return {"tokens": 2}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder("v2", load_settings("smoke"), tmp_path / "run")


def test_all_stages_run_in_order_once_and_are_skipped_the_second_time(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_pipeline(FUNCTIONS, run) == list(STAGES)
    assert run_pipeline(FUNCTIONS, run) == []
    printed = capsys.readouterr().out
    assert printed.count("nothing changed") == len(STAGES)
    assert "the model wrote:           Once upon a time\n" in printed


def test_metrics_are_finite_numbers_by_stage_with_seconds_in_each(run: RunFolder) -> None:
    run_pipeline(FUNCTIONS, run)
    metrics = run.metrics()
    assert list(metrics) == list(STAGES)
    assert set(metrics["data"]) == {"documents", "seconds"}
    assert metrics["pretrain"] == {
        "loss": 1.5,
        "seconds": 99.0,
    }  # a resumed training counts its earlier seconds itself


def test_from_only_and_force(run: RunFolder) -> None:
    run_pipeline(FUNCTIONS, run)
    assert run_pipeline(FUNCTIONS, run, first="pretrain") == list(STAGES)[2:]
    assert run_pipeline(FUNCTIONS, run, first="evaluate") == ["evaluate", "benchmark", "generate"]
    assert run_pipeline(FUNCTIONS, run, only="evaluate") == []
    assert run_pipeline(FUNCTIONS, run, only="evaluate", force=True) == ["evaluate"]
    assert run_pipeline(FUNCTIONS, run, force=True) == list(STAGES)


def changed(run: RunFolder, *overrides: str) -> RunFolder:
    return RunFolder("v2", load_settings("smoke", list(overrides)), run.path)


def test_changed_settings_redo_what_is_allowed_and_all_that_rests_on_it(run: RunFolder) -> None:
    run_pipeline(FUNCTIONS, run)
    assert (
        run_pipeline(FUNCTIONS, changed(run, "pretrain.max_steps=21"), first="pretrain") == list(STAGES)[2:]
    )
    rewarded = changed(run, "pretrain.max_steps=21", "reward.max_steps=7")
    assert run_stage("reward", FUNCTIONS, rewarded, force=True)
    assert run_pipeline(FUNCTIONS, rewarded) == ["ppo"]


def test_a_finished_result_is_not_thrown_away_unasked(run: RunFolder) -> None:
    run_pipeline(FUNCTIONS, run)
    shutil.rmtree(run.path / "evaluate")
    other = changed(run, "sft.max_steps=3", "evaluate.max_tokens=5")
    with pytest.raises(
        UserError, match=r"finished result, but .* sft\.max_steps = 10, not 3; add --from sft to .*--out"
    ):
        run_pipeline(FUNCTIONS, other)
    with pytest.raises(UserError, match="add --force to make it again"):
        run_stage("sft", FUNCTIONS, other)
    assert run_pipeline(FUNCTIONS, changed(run, "evaluate.max_tokens=5")) == ["evaluate"], (
        "it was not finished"
    )


def test_a_damaged_output_is_made_again_and_named(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run_pipeline(FUNCTIONS, run)
    (run.path / "tokenizer" / "train.bin").unlink()
    assert run_pipeline(FUNCTIONS, run) == ["tokenizer"]
    assert "made again:                its train.bin is missing\n" in capsys.readouterr().out


def test_ctrl_c_in_a_stage_stops_the_run(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(settings: Settings, run: RunFolder) -> dict[str, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{__name__}.do_pretrain", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(FUNCTIONS, run)
    assert list(run.metrics()) == ["data", "tokenizer"]


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_names_the_settings_that_lower_it(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fill(settings: Settings, run: RunFolder) -> dict[str, float]:
        raise error

    monkeypatch.setattr(f"{__name__}.do_pretrain", fill)
    with pytest.raises(
        UserError, match=r"memory in pretrain; lower pretrain\.\w*batch_size, .* or the size of the model"
    ):
        run_pipeline(FUNCTIONS, run)


def test_forced_training_starts_from_its_beginning(run: RunFolder) -> None:
    resumed.clear()
    run_pipeline(FUNCTIONS, run)
    run_pipeline(FUNCTIONS, run, first="pretrain")
    assert resumed == [True, False]
    assert run_pipeline(FUNCTIONS, run) == []


@pytest.mark.parametrize(
    ("level", "stage", "force", "continues"),
    [
        ("v2", "dpo", False, True),
        ("v2", "dpo", True, False),
        ("v1", "dpo", False, True),
        ("v1", "ppo", False, False),
    ],
)
def test_the_heading_says_whether_a_stage_continues(
    level: str, stage: str, force: bool, continues: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(level, load_settings("smoke"), tmp_path)
    write_json(run.stage(stage) / "unfinished.json", {})
    print_heading(stage, run, force)
    assert ("(continuing" in capsys.readouterr().out) == continues


def test_a_stage_without_its_inputs_names_the_command_to_run_first(run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"run `uv run v2 data --out .*` first"):
        run_stage("pretrain", FUNCTIONS, run)
    assert not run.path.exists()


def test_an_unknown_stage_names_those_that_exist(run: RunFolder) -> None:
    with pytest.raises(UserError, match="no stage 'train'; the stages are data, tokenizer"):
        run_pipeline(FUNCTIONS, run, only="train")
