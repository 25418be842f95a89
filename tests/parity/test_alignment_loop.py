"""What surrounds the steps of the alignment stages at levels 2 and 3: margins, accumulation, a diverged step, resuming, the exam."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared_data.errors import UserError
from shared_data.settings import PreferenceSettings, RewardSettings, load_settings
from shared_data.story_world import StoryWorld
from shared_data.story_world.prompts import prompts
from shared_data.story_world.questions import split_prompt
from tests.parity.alignment_cases import forget_last_checkpoint, logged, prepare, run_of, write_pairs
from v2_handwritten.align import alignment_loop as loop2
from v2_handwritten.align import dpo_train as dpo2
from v2_handwritten.align import grpo_train as grpo2
from v2_handwritten.align import ppo_train as ppo2
from v2_handwritten.align import preference_data as data2
from v2_handwritten.align import prompt_data as prompts2
from v2_handwritten.align import rm_train as rm2
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer2
from v2_handwritten.finetune import sft_train as sft2
from v2_handwritten.models.checkpoint import load_model as load2
from v2_handwritten.models.reward_model import RewardModel as RewardModel2
from v2_handwritten.pretrain.components import optimizers as optimizers2
from v3_numpy_deep.align import alignment_loop as loop3
from v3_numpy_deep.align import dpo_train as dpo3
from v3_numpy_deep.align import grpo_train as grpo3
from v3_numpy_deep.align import ppo_train as ppo3
from v3_numpy_deep.align import preference_data as data3
from v3_numpy_deep.align import prompt_data as prompts3
from v3_numpy_deep.align import rm_train as rm3
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer3
from v3_numpy_deep.finetune import sft_train as sft3
from v3_numpy_deep.models.checkpoint import load_model as load3
from v3_numpy_deep.models.reward_model import RewardModel as RewardModel3
from v3_numpy_deep.pretrain.components import optimizers as optimizers3

LOOPS = {"v2": loop2, "v3": loop3}
DATA = {"v2": (data2, Tokenizer2), "v3": (data3, Tokenizer3)}
PROMPTS = {"v2": prompts2, "v3": prompts3}
REWARD_MODULES = {"v2": rm2, "v3": rm3}
OPTIMIZERS = {"v2": optimizers2, "v3": optimizers3}
STAGES: dict[str, dict[str, Any]] = {
    "reward": {"v2": rm2.reward, "v3": rm3.reward},
    "dpo": {"v2": dpo2.dpo, "v3": dpo3.dpo},
    "ppo": {"v2": ppo2.ppo, "v3": ppo3.ppo},
    "grpo": {"v2": grpo2.grpo, "v3": grpo3.grpo},
    "sft": {"v2": sft2.sft, "v3": sft3.sft},
}
LEVELS = pytest.mark.parametrize("level", ["v2", "v3"])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that every test copies."""
    return prepare(tmp_path_factory.mktemp("prepared"))


def reward_model(level: str, prepared: Path) -> Any:
    """A reward model that is about to be trained."""
    if level == "v2":
        return RewardModel2.from_transformer(load2(prepared / "sft"), 0)
    return RewardModel3.from_transformer(load3(prepared / "sft"), 0)


def loader_of(level: str, prepared: Path, tmp_path: Path, **section: Any) -> tuple[Any, PreferenceSettings]:
    """Batches of six pairs, as the stage `reward` has them."""
    data, tokenizer = DATA[level]
    source = write_pairs(tmp_path / "pairs.jsonl", 8)
    settings, run = run_of(level, prepared, tmp_path, [f"reward.source={source}"])
    given, _ = data.open_preferences(settings, "reward", tokenizer.load(run.tokenizer))
    assert len(given.pairs) == 7, "a tenth, and at least one, is held out"
    options = RewardSettings(max_grad_norm=0.0, **section)
    return given.loader(options, 0, 1024, True), options


@LEVELS
def test_the_margin_of_a_record_reaches_the_loss(level: str, prepared: Path, tmp_path: Path) -> None:
    """At the first step the scores do not know the margins yet: a margin m costs about m nats a pair."""
    rows = {}
    for name, margin in (("none", None), ("large", 50.0)):
        source = write_pairs(tmp_path / f"{name}.jsonl", 8, margin)
        overrides = [f"reward.source={source}", "reward.max_steps=1", "reward.logging_steps=1"]
        settings, run = run_of(level, prepared, tmp_path / name, overrides)
        STAGES["reward"][level](settings, run)
        (rows[name],) = logged(run, "reward")
    assert rows["none"]["loss"] < 5
    assert rows["large"]["loss"] == pytest.approx(50.4 - rows["none"]["margin"], abs=0.4)
    assert rows["large"]["margin"] == rows["none"]["margin"], "the metric leaves the margin out"
    assert rows["large"]["gradient_norm"] > rows["none"]["gradient_norm"]


@LEVELS
@pytest.mark.parametrize("margin", ["much", float("nan"), float("inf")])
def test_a_margin_that_is_no_number_is_refused_by_the_records_name(level: str, margin: Any) -> None:
    with pytest.raises(UserError, match=r"line 3: the margin is .*not a finite number"):
        DATA[level][0].record_extras({"margin": margin}, "line 3")


def watched_optimizer(level: str, model: Any, kept: list[np.ndarray]) -> Any:
    """An optimizer that moves nothing and puts the gradients it is given into `kept`."""

    class Watched(OPTIMIZERS[level].AdamW):
        def step(self) -> None:
            kept.extend(np.array(p.grad) for group in self.groups for p in group["parameters"])

    return Watched(OPTIMIZERS[level].parameter_groups(model, 0.0), 1e-3)


@LEVELS
def test_accumulated_gradients_are_those_of_one_big_batch(level: str, prepared: Path, tmp_path: Path) -> None:
    """Three batches of two pairs, or one of six: the same loss, metrics, norm, and gradient of every weight."""
    found = []
    for batch_size, accumulated in ((2, 3), (6, 1)):
        folder = tmp_path / str(batch_size)
        folder.mkdir()
        loader, section = loader_of(
            level, prepared, folder, batch_size=batch_size, gradient_accumulation_steps=accumulated
        )
        model = reward_model(level, prepared)
        kept: list[np.ndarray] = []
        optimizer = watched_optimizer(level, model, kept)
        metrics = LOOPS[level].preference_step(
            model,
            optimizer,
            loader,
            lambda batch, model=model: REWARD_MODULES[level].reward_batch_loss(model, batch, 0.1),
            section,
            0,
        )
        assert all(p.grad is None for p in model.parameters()), "the next step starts from nothing"
        found.append((metrics, kept))
    (metrics, gradients), (expected, wanted) = found
    for name in ("loss", "accuracy", "margin", "mean_reward", "gradient_norm", "tokens"):
        assert metrics[name] == pytest.approx(expected[name], abs=1e-13)
    for gradient, big in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(gradient, big, rtol=0, atol=2e-14)
    assert max(np.abs(big).max() for big in wanted) > 0.1


@LEVELS
@pytest.mark.parametrize(
    ("value", "said"), [(float("nan"), "is nan"), (float("inf"), "is inf"), (float("-inf"), "is -inf")]
)
def test_a_number_that_is_not_finite_ends_the_run_and_keeps_earlier_checkpoints(
    level: str, prepared: Path, tmp_path: Path, value: float, said: str
) -> None:
    overrides = ["grpo.max_steps=5", "grpo.save_steps=1", "grpo.learning_rate=0.5"]
    settings, run = run_of(level, prepared, tmp_path, overrides)
    optimizer = LOOPS[level].make_optimizer(
        [{"names": [], "parameters": [], "weight_decay": 0.0}], settings.grpo
    )

    def step(number: int) -> dict[str, float]:
        return {"loss": 1.0, "gradient_norm": 1.0 if number < 2 else value, "tokens": 7.0}

    def write_weights(folder: Path) -> None:
        (folder / "weights").write_text("these")

    with pytest.raises(UserError, match=f"gradient norm {said} at step 3; lower grpo.learning_rate .now 0.5"):
        LOOPS[level].train_steps(settings, run, "grpo", optimizer, None, step, write_weights)
    kept = sorted(path.name for path in (run.stage("grpo") / "state").iterdir())
    assert kept == ["step-000001", "step-000002"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@LEVELS
def test_a_diverged_loss_moves_no_weight(level: str, prepared: Path, tmp_path: Path) -> None:
    """The step reports what it found; that the run ends, is the loop's."""
    loader, section = loader_of(level, prepared, tmp_path, batch_size=6)
    model = reward_model(level, prepared)
    weight = model.score.weight.data
    weight[...] = float("inf")
    before = {name: np.array(value) for name, value in model.state_dict().items()}
    optimizer = OPTIMIZERS[level].AdamW(OPTIMIZERS[level].parameter_groups(model, 0.0), 1e-3)
    metrics = LOOPS[level].preference_step(
        model,
        optimizer,
        loader,
        lambda batch: REWARD_MODULES[level].reward_batch_loss(model, batch),
        section,
        0,
    )
    assert not np.isfinite(metrics["gradient_norm"])
    for name, value in model.state_dict().items():
        assert np.array_equal(before[name], np.array(value)), name


EVERY = ["log_every=1", "checkpoint_every=1", "learning_rate=1e-2", "warmup_steps=0", "steps=2"]
RESUMED = {
    "reward": [*EVERY, "pairs=5", "test_pairs=2", "batch_size=2", "optimizer=muon"],
    "dpo": [*EVERY, "pairs=5", "test_pairs=2", "batch_size=2", "test_prompts=1", "max_new_tokens=4"],
    "ppo": [*EVERY, "prompts=4", "prompts_per_step=2", "test_prompts=1", "max_new_tokens=4", "epochs=2"],
    "grpo": [*EVERY, "prompts=4", "prompts_per_step=1", "test_prompts=1", "max_new_tokens=4", "group_size=3"],
    "sft": [*EVERY, "adapter.method=lora", "adapter.dropout=0.2", "conversations=4", "test_questions=1"],
}


@LEVELS
@pytest.mark.parametrize("stage", RESUMED)
def test_a_stage_that_goes_on_from_a_checkpoint_ends_with_the_same_bits(
    level: str, prepared: Path, tmp_path: Path, stage: str
) -> None:
    """Also with dropout in the adapters of `sft`, and with PPO's second model."""
    settings, run = run_of(level, prepared, tmp_path, [f"{stage}.{option}" for option in RESUMED[stage]])
    results = []
    for again in (False, True):
        if again:
            forget_last_checkpoint(run, stage)
        STAGES[stage][level](settings, run)
        last = run.stage(stage) / "state" / "step-000002"
        files = [run.stage(stage) / "model.safetensors", *sorted(last.rglob("*.safetensors"))]
        results.append((logged(run, stage), [(path.name, path.read_bytes()) for path in files]))
    assert len(results[0][1]) == {"ppo": 4}.get(stage, 3)
    assert results[0] == results[1]


@LEVELS
@pytest.mark.parametrize("method", ["none", "lora"])
def test_an_adapter_of_an_earlier_run_does_not_outlive_it(
    level: str, prepared: Path, tmp_path: Path, method: str
) -> None:
    overrides = [*RESUMED["sft"], "steps=1", f"adapter.method={method}"]
    settings, run = run_of(level, prepared, tmp_path, [f"sft.{option}" for option in overrides])
    old = run.stage("sft") / "adapter" / "old"
    old.mkdir(parents=True)
    STAGES["sft"][level](settings, run)
    assert not old.exists()
    assert old.parent.exists() == (method == "lora")


def tells(world: StoryWorld, story: str, split: str) -> bool:
    """Whether a split has this story."""
    try:
        return bool(world.derivations(story, split))
    except UserError:
        return False


@LEVELS
@pytest.mark.parametrize("stage", ["dpo", "ppo", "grpo"])
def test_the_exams_prompts_are_of_the_test_split_and_training_never_sees_them(level: str, stage: str) -> None:
    settings = load_settings("smoke", [f"{stage}.test_prompts=30"])
    asked = PROMPTS[level].exam_prompts(settings, stage)
    assert asked == list(islice(prompts(0, "test", 0.5), 30))
    world = StoryWorld()
    stories = [parts[0] for prompt in asked if (parts := split_prompt(prompt))]
    assert 5 < len(stories) < 25, "questions and requests"
    for story in stories:
        assert tells(world, story, "test")
        assert not tells(world, story, "train")
    if stage != "dpo":
        learned, held_out = PROMPTS[level].open_prompts(settings, stage)
        assert held_out == asked
        assert len(learned) == 40
        assert not set(learned) & set(asked)
        for story in [parts[0] for prompt in learned if (parts := split_prompt(prompt))]:
            assert tells(world, story, "train")
            assert not tells(world, story, "test")


@LEVELS
def test_the_stage_examines_on_these_prompts(level: str, prepared: Path, tmp_path: Path) -> None:
    overrides = [*RESUMED["grpo"], "test_prompts=2", "question_fraction=0"]
    settings, run = run_of(level, prepared, tmp_path, [f"grpo.{option}" for option in overrides])
    numbers = STAGES["grpo"][level](settings, run)
    replies = json.loads((run.stage("grpo") / "replies.json").read_text())
    assert [record["prompt"] for record in replies] == PROMPTS[level].exam_prompts(settings, "grpo")
    for moment in ("before", "after"):
        assert numbers[moment] == sum(record[f"{moment}_reward"] for record in replies) / 2 > 0


@LEVELS
def test_of_a_users_prompts_every_tenth_is_kept_for_the_exam(level: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"question {n}"}) + "\n" for n in range(25)))
    settings = load_settings("smoke", [f"grpo.source={file}", "grpo.eval_prompts=2", "grpo.prompts=25"])
    learned, held_out = PROMPTS[level].open_prompts(settings, "grpo")
    assert held_out == ["question 0", "question 10"]
    assert learned == [f"question {n}" for n in range(25) if n % 10]
    file.write_text('{"prompt": "fine"}\n{"prompt": " "}\n')
    with pytest.raises(UserError, match=r"prompts.jsonl.* has no text 'prompt'"):
        PROMPTS[level].open_prompts(settings, "grpo")
