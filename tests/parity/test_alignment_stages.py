"""The stages `reward`, `dpo`, `ppo`, `grpo`, and `sft` with adapters: levels 2 and 3 log the same numbers and end with the same weights.

Both begin with the same checkpoints, in float64, and draw the same pairs and prompts of the story world.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from shared_data.runs import RunFolder
from tests.parity.alignment_cases import (
    MEASURED_TIME,
    compare_logs,
    logged,
    prepare,
    run_of,
    write_pairs,
)
from tests.parity.recorder import ParityRecorder, as_array
from v2_handwritten.align import dpo_train as dpo2
from v2_handwritten.align import grpo_train as grpo2
from v2_handwritten.align import ppo_train as ppo2
from v2_handwritten.align import rm_train as rm2
from v2_handwritten.finetune import sft_train as sft2
from v3_numpy_deep.align import dpo_train as dpo3
from v3_numpy_deep.align import grpo_train as grpo3
from v3_numpy_deep.align import ppo_train as ppo3
from v3_numpy_deep.align import preference_data as preference_data3
from v3_numpy_deep.align import rm_train as rm3
from v3_numpy_deep.finetune import sft_train as sft3

FUNCTIONS = {
    "reward": (rm2.reward, rm3.reward),
    "dpo": (dpo2.dpo, dpo3.dpo),
    "ppo": (ppo2.ppo, ppo3.ppo),
    "grpo": (grpo2.grpo, grpo3.grpo),
    "sft": (sft2.sft, sft3.sft),
}
PAIRS = [
    "pairs=7",
    "test_pairs=3",
    "batch_size=2",
    "gradient_accumulation_steps=2",
    "steps=3",
    "eval_every=2",
]
REPLIES = ["prompts=6", "minibatches=2", "epochs=2", "steps=3"]
EXAM = ["test_prompts=3", "max_new_tokens=8"]
EVERY = ["log_every=1", "warmup_steps=0", "learning_rate=1e-2", "checkpoint_every=1", "weight_decay=0.1"]
EVERY += ["adam_epsilon=1e-5"]  # with 1e-8, Adam makes steps of gradients that are nothing but rounding
CASES: dict[str, tuple[str, list[str]]] = {
    "reward": ("reward", [*PAIRS, "center_coefficient=0.1", "warmup_steps=2"]),
    "reward, muon": ("reward", [*PAIRS, "optimizer=muon"]),
    "reward, wsd": ("reward", [*PAIRS, "schedule=wsd", "decay_fraction=0.7"]),
    "dpo": ("dpo", [*PAIRS, *EXAM, "label_smoothing=0.1"]),
    "dpo, live reference, ipo": (
        "dpo",
        [*PAIRS, *EXAM, "steps=2", "test_prompts=2", "precompute_reference=false", "loss_type=ipo"],
    ),
    "ppo": ("ppo", [*REPLIES, *EXAM, "prompts_per_step=3"]),
    "ppo, story world's reward, k3": (
        "ppo",
        [*REPLIES, *EXAM, "steps=2", "prompts_per_step=3", "reward=story_world", "kl_estimator=k3"],
    ),
    "grpo": ("grpo", [*REPLIES, *EXAM, "prompts_per_step=2", "group_size=3", "beta=0.1"]),
    "grpo, one step a rollout": ("grpo", [*EXAM, "prompts_per_step=2", "group_size=3", "steps=2"]),
}
# Of numbers and of weights.
TOLERANCES = {"reward": (5e-14, 1e-13), "dpo": (8e-13, 5e-13), "ppo": (3e-14, 1e-13), "grpo": (2e-13, 2e-13)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that every test copies."""
    return prepare(tmp_path_factory.mktemp("prepared"))


def both(
    stage: str, prepared: Path, folder: Path, overrides: list[str]
) -> tuple[list[RunFolder], list[dict[str, Any]]]:
    """Run a stage at levels 2 and 3; their folders and the numbers they return."""
    runs, numbers = [], []
    for level, function in zip(("v2", "v3"), FUNCTIONS[stage], strict=True):
        settings, run = run_of(level, prepared, folder, [f"{stage}.{override}" for override in overrides])
        numbers.append(function(settings, run))
        runs.append(run)
    return runs, numbers


def weights(folder: Path, name: str = "model.safetensors") -> np.ndarray:
    """All weights of a file in a row, which must be in float64."""
    tensors = load_file(folder / name)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float64)}
    return np.concatenate([tensors[key].ravel() for key in sorted(tensors)])


def compare(
    parity: ParityRecorder,
    component: str,
    stage: str,
    runs: list[RunFolder],
    numbers: list[dict[str, Any]],
    tolerances: tuple[float, float],
    others: dict[str, float] | None = None,
) -> None:
    """Logs, returned numbers, final weights, and what the replies say."""
    folders = [run.stage(stage) for run in runs]
    two, three = (logged(run, stage) for run in runs)
    if stage == "dpo":  # before the first update, both rewards are 0: which is larger is rounding
        for first in (two[0], three[0]):
            assert abs(first.pop("rewards/margins")) < 1e-12
            del first["rewards/accuracies"]
    compare_logs(parity, component, three, two, tolerances[0], others)
    untimed = [{f"returned {k}": v for k, v in found.items() if k not in MEASURED_TIME} for found in numbers]
    compare_logs(parity, component, untimed[1:], untimed[:1], tolerances[0], others)
    two, three = (weights(folder) for folder in folders)
    parity(
        component=component,
        quantity="final weights",
        levels="v2-v3",
        actual=three,
        expected=two,
        tolerance=tolerances[1],
    )
    if (folders[0] / "replies.json").exists():
        two, three = (json.loads((folder / "replies.json").read_text()) for folder in folders)
        assert [[r["prompt"], r["before"], r["after"]] for r in two] == [
            [r["prompt"], r["before"], r["after"]] for r in three
        ]


@pytest.mark.parametrize("case", CASES)
def test_a_stage_logs_and_learns_the_same_at_levels_2_and_3(
    parity: ParityRecorder, prepared: Path, tmp_path: Path, case: str
) -> None:
    stage, overrides = CASES[case]
    runs, numbers = both(stage, prepared, tmp_path, [*EVERY, *overrides])
    component = f"stage {case}"
    compare(parity, component, stage, runs, numbers, TOLERANCES[stage])
    before = weights(prepared / ("reward" if stage == "reward" else "sft"))
    after = weights(runs[0].stage(stage))
    assert before.shape == after.shape
    assert np.abs(after - before).max() > 1e-3, "it has learnt something"
    last = sorted((runs[0].stage(stage) / "state").iterdir())[-1].name
    for run in runs:
        moments = load_file(run.stage(stage) / "state" / last / "optimizer.safetensors")
        assert any(name.startswith("momentum.") for name in moments) == ("optimizer=muon" in overrides)
    if stage == "ppo":
        two, three = (weights(run.stage(stage) / "state" / last / "value_model") for run in runs)
        parity(
            component=component,
            quantity="value model",
            levels="v2-v3",
            actual=three,
            expected=two,
            tolerance=TOLERANCES[stage][1],
        )


@pytest.mark.parametrize("scored_by", ["story_world", "reward_model"])
def test_values_begin_at_zero_where_another_function_than_the_reward_model_scores(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored_by: str
) -> None:
    """The reward model's scale is its own: a head that it left would first have to unlearn it, while the policy follows wrong values."""
    heads: list[np.ndarray] = []

    def listening(step: Any) -> Any:
        def heard(model: Any, value_model: Any, *rest: Any) -> Any:
            heads.append(as_array(value_model.score.weight).copy())
            return step(model, value_model, *rest)

        return heard

    for module in (ppo2, ppo3):
        monkeypatch.setattr(module, "ppo_step", listening(module.ppo_step))
    overrides = [*EVERY, *EXAM, "prompts=6", "prompts_per_step=3", "steps=2", f"reward={scored_by}"]
    both("ppo", prepared, tmp_path, overrides)
    kept = load_file(prepared / "reward" / "model.safetensors")["score.weight"]
    for first, second in (heads[:2], heads[2:]):
        assert np.array_equal(first, np.zeros_like(kept) if scored_by == "story_world" else kept)
        assert not np.array_equal(first, second)


def test_records_with_margins_train_the_same_reward_model_in_any_number_of_threads(
    parity: ParityRecorder, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Level 3 deals the pairs of a batch out to threads, and their margins with them."""
    monkeypatch.setattr(preference_data3, "available_threads", lambda: 3)
    source = write_pairs(tmp_path / "pairs.jsonl", 12, margin=1.0)
    overrides = [*EVERY, *PAIRS, "steps=2", "pairs=12", "batch_size=4", f"source={source}"]
    runs, numbers = both("reward", prepared, tmp_path, overrides)
    compare(parity, "stage reward, margins", "reward", runs, numbers, TOLERANCES["reward"])


ADAPTERS = [
    *EVERY,
    "steps=3",
    "adapter.rank=2",
    "adapter.block_size=32",
    "conversations=8",
    "passage_fraction=1.0",
    "test_questions=2",
]
# The loss is logged by level 2 in float32; with double quantization, the last bit of the scales' mean (float32) is in every weight.
METHODS = {
    "lora": (["adapter.method=lora"], 8e-15),
    "qlora": (["adapter.method=qlora", "adapter.use_dora=true", "adapter.double_quantization=false"], 1e-13),
    "qlora, double quantization": (["adapter.method=qlora"], 1e-5),
}


@pytest.mark.parametrize("method", METHODS)
def test_adapters_learn_the_same_at_levels_2_and_3(
    parity: ParityRecorder, prepared: Path, tmp_path: Path, method: str
) -> None:
    overrides, tolerance = METHODS[method]
    runs, numbers = both("sft", prepared, tmp_path, [*ADAPTERS, *overrides])
    component = f"stage sft, {method}"
    compare(
        parity, component, "sft", runs, numbers, (tolerance, tolerance), {"loss": 2e-7, "returned loss": 2e-7}
    )
    two, three = (weights(run.stage("sft") / "adapter", "adapter_model.safetensors") for run in runs)
    parity(
        component=component,
        quantity="adapters",
        levels="v2-v3",
        actual=three,
        expected=two,
        tolerance=tolerance,
    )
    assert numbers[0]["trainable_parameters"] == two.size
    assert np.abs(weights(runs[0].stage("sft")) - weights(prepared / "sft")).max() > 1e-3
