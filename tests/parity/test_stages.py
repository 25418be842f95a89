"""The stages that train: levels 2 and 3 log the same metrics and end with the same weights, in float64 from the same files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from shared_data.errors import UserError
from shared_data.model_files.gguf_export import export_gguf
from tests.parity.recorder import ParityRecorder, as_array
from tests.parity.stage_cases import StageRun, prepare
from tests.parity.training_cases import LEVELS, level_module

CASES: dict[str, tuple[str, list[str]]] = {
    "pretrain": ("pretrain", []),
    "sft": ("sft", []),
    "reward, centered": ("reward", ["center_rewards_coefficient=0.1", "warmup_steps=2"]),
    "reward, muon, wsd": (
        "reward",
        ["optim=muon", 'lr_scheduler_type="warmup_stable_decay"', "lr_scheduler_kwargs.num_decay_steps=2"],
    ),
    "dpo, smoothed": ("dpo", ["label_smoothing=0.1"]),
    "dpo, ipo, precomputed": ("dpo", ["precompute_ref_log_probs=true", 'loss_type="ipo"']),
    "ppo, reward model": ("ppo", ["missing_eos_penalty=0.5"]),
    "ppo, story world, k3": ("ppo", ["reward=story_world", 'kl_estimator="k3"', "max_steps=2"]),
    "grpo": ("grpo", ["beta=0.1", "num_iterations=2"]),
    "grpo, no KL": ("grpo", ["max_steps=2", 'loss_type="dr_grpo"', 'scale_rewards="batch"']),
    "sft, lora": ("sft", ['adapter.method="lora"', "adapter.r=2"]),
    "sft, qlora, DoRA": ("sft", ['adapter.method="qlora"', "adapter.r=2", "adapter.use_dora=true"]),
    "sft, double quantization": (
        "sft",
        ['adapter.method="qlora"', "adapter.r=2", "adapter.bnb_4bit_use_double_quant=true"],
    ),
}
# Pretraining starts in float32, as everywhere; double quantization rounds the mean of the scales to float32.
TOLERANCES = {
    "pretrain": 1e-6,
    "pretrain weights": 1e-5,
    "sft, double quantization": 1e-5,
    "sft, qlora, DoRA": 2e-7,
}
FLOAT64 = {"sft": 2e-7, "reward": 1e-13, "dpo": 8e-13, "ppo": 1e-13, "grpo": 2e-13}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that every test copies."""
    return prepare(tmp_path_factory.mktemp("prepared") / "run")


@pytest.mark.parametrize("case", CASES)
def test_a_stage_logs_and_learns_the_same_at_levels_2_and_3(
    parity: ParityRecorder, prepared: Path, tmp_path: Path, case: str
) -> None:
    stage, overrides = CASES[case]
    if "qlora" in "".join(overrides):
        overrides = [*overrides, "adapter.bnb_4bit_blocksize=32"]
    two, three = (StageRun(level, stage, prepared, tmp_path / level, *overrides) for level in LEVELS)
    metrics = [each() for each in (two, three)]
    logs = [each.rows for each in (two, three)]
    if stage == "dpo":  # before the first update both rewards are 0: which is larger is rounding
        for first, *_ in logs:
            assert abs(first.pop("rewards/margins")) < 1e-12
            del first["rewards/accuracies"]
    texts = [[row.pop("sample") for row in rows if "sample" in row] for rows in logs]
    assert texts[0] == texts[1]
    tolerance = TOLERANCES.get(case, FLOAT64.get(stage, 0))
    for kind, (expected, actual) in (("log", logs), ("returned", [[each] for each in metrics])):
        assert [row.keys() for row in actual] == [row.keys() for row in expected]
        for name in dict.fromkeys(name for row in expected for name in row):
            numbers = [np.array([row[name] for row in rows if name in row]) for rows in (actual, expected)]
            parity(
                component=f"stage {case}", quantity=f"{kind} {name}", levels="v2-v3",
                actual=numbers[0], expected=numbers[1], tolerance=tolerance,
            )  # fmt: skip
    tolerance = TOLERANCES.get(f"{case} weights", tolerance)
    last = f"state/{two.checkpoints[-1].name}"
    files = ["model.safetensors", *([f"{last}/value_model/model.safetensors"] if stage == "ppo" else [])]
    for file in [*files, *(["adapter/adapter_model.safetensors"] if "adapter" in "".join(overrides) else [])]:
        parity(
            component=f"stage {case}", quantity=file.removeprefix(last), levels="v2-v3",
            actual=three.weights(file), expected=two.weights(file), tolerance=tolerance,
        )  # fmt: skip
    if stage != "pretrain":
        before = load_file(prepared / ("reward" if stage == "reward" else "sft") / "model.safetensors")
        start = np.concatenate([before[key].ravel() for key in sorted(before)])
        assert two.weights().dtype == np.float64
        assert (
            np.abs(two.weights() - start).max() > 1e-3
            if stage != "reward"
            else len(start) == len(two.weights())
        )
    moments = load_file(two.folder / last / "optimizer.safetensors")
    assert any(name.startswith("momentum.") for name in moments) == ("optim=muon" in overrides)
    if (two.folder / "completions.json").exists():
        two_said, three_said = (
            [
                [record[name] for name in ("prompt", "before", "after")]
                for record in json.loads(file.read_text())
            ]
            for file in (two.folder / "completions.json", three.folder / "completions.json")
        )
        assert two_said == three_said


@pytest.mark.parametrize("scored_by", ["story_world", "reward_model"])
@pytest.mark.parametrize("level", LEVELS)
def test_values_begin_at_zero_unless_the_reward_model_scores(
    level: str, scored_by: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reward model's scale is its own: its head would first have to unlearn it, while the policy follows wrong values."""
    heads: list[np.ndarray] = []
    train = level_module(level, "align.ppo_train")
    update = train.ppo_update

    def watched(policy: Any, value_model: Any, *rest: Any) -> Any:
        heads.append(as_array(value_model.score.weight).copy())
        yield from update(policy, value_model, *rest)

    monkeypatch.setattr(train, "ppo_update", watched)
    StageRun(level, "ppo", prepared, tmp_path / "run", f"reward={scored_by}", "max_steps=2")()
    head = load_file(prepared / "reward" / "model.safetensors")["score.weight"]
    assert np.array_equal(heads[0], np.zeros_like(head) if scored_by == "story_world" else head)
    assert not np.array_equal(heads[0], heads[1])


@pytest.mark.parametrize("level", LEVELS)
def test_the_margin_of_a_record_reaches_the_loss(level: str, prepared: Path, tmp_path: Path) -> None:
    """At the first step the scores do not know the margins yet: a margin m costs about m nats a pair."""
    rows = {}
    for margin in (0.0, 50.0):
        source = tmp_path / f"{margin}.jsonl"
        pair = {"prompt": "What is it?", "rejected": "A hat.", "margin": margin}
        source.write_text("".join(json.dumps(pair | {"chosen": f"A {n}."}) + "\n" for n in range(8)))
        stage = StageRun(
            level, "reward", prepared, tmp_path / f"run{margin}", f"source={source}", "max_steps=1"
        )
        stage()
        (rows[margin],) = stage.rows
    assert rows[0.0]["loss"] < 5
    assert rows[50.0]["loss"] == pytest.approx(50 - rows[0.0]["margin"], abs=0.5)
    assert rows[50.0]["margin"] == rows[0.0]["margin"], "the metric leaves the margin out"


@pytest.mark.parametrize("level", LEVELS)
def test_pretraining_returns_its_metrics_and_writes_no_pickle(
    level: str, prepared: Path, tmp_path: Path
) -> None:
    stage = StageRun(level, "pretrain", prepared, tmp_path / "run", "max_steps=20")
    metrics = stage()
    facts = json.loads((prepared / "tokenizer" / "validation.json").read_text())
    assert metrics["floor_bits_per_byte"] == pytest.approx(-facts["log2_probability"] / facts["bytes"])
    assert {"perplexity", "bits_per_byte", "parameters", "epochs", "loss"} <= metrics.keys()
    losses = [row["eval_loss"] for row in stage.rows if "eval_loss" in row]
    assert losses[-1] < losses[0]
    assert all(row["sample"].startswith("Once") for row in stage.rows if "sample" in row)
    files = {path.name for path in stage.folder.rglob("*") if path.is_file()}
    assert all(name.endswith((".json", ".jsonl", ".safetensors")) for name in files)


@pytest.mark.parametrize("level", LEVELS)
def test_pretraining_starts_from_the_weights_of_a_folder(level: str, prepared: Path, tmp_path: Path) -> None:
    options = [f"model_name_or_path={prepared / 'pretrain'}", "max_steps=1", "learning_rate=1e-9"]
    stage = StageRun(level, "pretrain", prepared, tmp_path / "run", *options)
    before = stage.weights()
    stage()
    np.testing.assert_allclose(stage.weights(), before, atol=1e-6)
    deeper = StageRun(level, "pretrain", prepared, tmp_path / "run2", *options, "model.num_hidden_layers=3")
    deeper()  # the sizes are those of the folder
    np.testing.assert_allclose(deeper.weights(), before, atol=1e-6)
    facts = tmp_path / "run" / "tokenizer" / "train.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"vocab_size": 999}))
    with pytest.raises(UserError, match="tokenizer of 999 tokens"):
        stage()


@pytest.mark.parametrize("level", LEVELS)
def test_pretraining_starts_from_a_gguf_file(level: str, prepared: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    export_gguf(prepared / "pretrain", prepared / "pretrain", file, "f32")
    options = [f"model_name_or_path={file}", "max_steps=1", "learning_rate=1e-9"]
    stage = StageRun(level, "pretrain", prepared, tmp_path / "run", *options)
    before = stage.weights()
    stage()
    np.testing.assert_allclose(stage.weights(), before, atol=1e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_an_adapter_of_an_earlier_run_does_not_outlive_it(level: str, prepared: Path, tmp_path: Path) -> None:
    old = tmp_path / "run" / "sft" / "adapter" / "old"
    for method in ("none", "lora"):
        stage = StageRun(level, "sft", prepared, tmp_path / "run", "max_steps=1", f"adapter.method={method}")
        old.mkdir(parents=True)
        stage()
        assert not old.exists()
        assert old.parent.exists() == (method == "lora")
