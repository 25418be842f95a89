"""Updates of PPO in lockstep at levels 2 and 3: the same replies, the same numbers, the same weights; and reward goes up."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from v2_handwritten.align.algorithms.log_probabilities import frozen_copy as frozen2
from v3_numpy_deep.align.algorithms.log_probabilities import frozen_copy as frozen3

from tests.parity.inference_cases import prompts, small_run, trio
from tests.parity.recorder import ParityRecorder, as_array
from tests.parity.rl_cases import compare_weights, even_tokens
from v1_quick.align import ppo_train as ppo1
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer1
from v1_quick.models.checkpoint import load_model as load1
from v1_quick.models.reward_model import RewardModel as RewardModel1
from v2_handwritten.align import ppo_train as ppo2
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer2
from v2_handwritten.models.checkpoint import load_model as load2
from v2_handwritten.models.reward_model import RewardModel as RewardModel2
from v2_handwritten.pretrain.components.optimizers import AdamW as AdamW2
from v3_numpy_deep.align import ppo_train as ppo3
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer3
from v3_numpy_deep.models.checkpoint import load_model as load3
from v3_numpy_deep.models.reward_model import RewardModel as RewardModel3
from v3_numpy_deep.pretrain.components.optimizers import AdamW as AdamW3

CASE = "gpt2"
PROMPTS = prompts(CASE) * 4
OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "missing_end_penalty": 0.5, "epochs": 2, "minibatches": 2}
LEVELS = ((ppo2, RewardModel2, AdamW2, frozen2), (ppo3, RewardModel3, AdamW3, frozen3))


def start(level: int, learning_rate: float = 1e-2) -> tuple[Any, ...]:
    """Policy, value model, optimizer and reference of a level, from the same weights."""
    module, value_class, optimizer_class, frozen = LEVELS[level]
    model = trio(CASE)[level + 1]
    value_model = value_class.from_transformer(model, seed=0)
    groups = module.actor_critic_groups(model, value_model, 0.01)
    return model, value_model, optimizer_class(groups, learning_rate), frozen(model)


def test_three_updates_in_lockstep(parity: ParityRecorder) -> None:
    logs, models = [], []
    for level, (module, *_) in enumerate(LEVELS):
        model, value_model, optimizer, reference = start(level)
        options = module.PpoOptions(**OPTIONS)
        logs.append(
            [
                module.ppo_step(
                    model, value_model, optimizer, reference, PROMPTS, even_tokens, options, seed=step
                )
                for step in range(3)
            ]
        )
        models.append((model, value_model))
    assert max(log["policy/clipfrac"] for log in logs[0]) > 0
    assert max(log["val/clipfrac"] for log in logs[0]) > 0
    for name in logs[0][0]:
        actual, expected = ([log[name] for log in side] for side in logs)
        parity(
            component="ppo, three updates",
            quantity=name,
            levels="v2-v3",
            actual=actual,
            expected=expected,
            tolerance=4e-13,
        )
    for kind, two, three in zip(("policy", "value model"), *models, strict=True):
        compare_weights(parity, f"ppo, three updates, {kind}", two, three, tolerance=4e-13)


@pytest.mark.parametrize("level", [0, 1], ids=["v2", "v3"])
def test_the_pass_of_the_experience_is_the_pass_of_the_first_update(
    parity: ParityRecorder, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    """With one minibatch the policy is asked once less; with two, of which one has all replies, it learns the same the longer way."""
    module, results, asked = LEVELS[level][0], [], []
    log_probabilities = module._log_probabilities
    monkeypatch.setattr(
        module, "_log_probabilities", lambda *inputs: asked.append(len(results)) or log_probabilities(*inputs)
    )
    for minibatches in (1, 2):
        model, value_model, optimizer, reference = start(level)
        options = module.PpoOptions(**OPTIONS | {"minibatches": minibatches})
        with monkeypatch.context() as patch:
            patch.setattr(np, "array_split", lambda order, parts: [order])
            module.ppo_step(model, value_model, optimizer, reference, PROMPTS, even_tokens, options, seed=1)
        weights = [np.ravel(as_array(p)) for m in (model, value_model) for p in m.parameters()]
        results.append(np.concatenate(weights))
    assert [asked.count(number) for number in (0, 1)] == [3, 4]  # of policy and reference, and for each epoch
    name = f"v{level + 2}"
    # Measured: 1e-11. Adam makes steps of the size of the learning rate of gradients that are nothing but rounding.
    parity(
        component="ppo, one minibatch", quantity="weights after an update", levels=f"{name}-{name}",
        actual=results[0], expected=results[1], tolerance=1e-10,
    )  # fmt: skip


def test_reward_rises_the_value_model_learns_and_the_reference_stays() -> None:
    model, value_model, optimizer, reference = start(0)
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    options = ppo2.PpoOptions(**OPTIONS | {"temperature": 1.0, "missing_end_penalty": None, "epochs": 4})
    logs = [
        ppo2.ppo_step(model, value_model, optimizer, reference, PROMPTS, even_tokens, options, seed)
        for seed in range(12)
    ]
    assert np.mean([log["reward"] for log in logs[-3:]]) > np.mean([log["reward"] for log in logs[:3]]) + 0.2
    assert logs[-1]["loss/value"] < logs[0]["loss/value"]
    assert all(torch.equal(before[name], value) for name, value in reference.state_dict().items())


def test_an_update_that_is_done_again_is_the_same() -> None:
    """What resuming relies on: the seed of the step decides everything."""
    results = []
    for _ in range(2):
        model, value_model, optimizer, reference = start(0)
        options = ppo2.PpoOptions(**OPTIONS)
        log = ppo2.ppo_step(model, value_model, optimizer, reference, PROMPTS, even_tokens, options, seed=7)
        results.append((log, torch.cat([p.detach().flatten() for p in model.parameters()])))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_training_with_a_reward_model_is_the_same_at_levels_2_and_3_and_runs_at_level_1(
    parity: ParityRecorder, tmp_path: Path
) -> None:
    run = small_run(tmp_path, "model.max_position_embeddings=128")
    heard: list[list[tuple[int, dict[str, float]]]] = []
    for level, load, tokenizer, module, reward_class in (
        (1, load1, Tokenizer1, ppo1, RewardModel1),
        (2, load2, Tokenizer2, ppo2, RewardModel2),
        (3, load3, Tokenizer3, ppo3, RewardModel3),
    ):
        model = load(run.model("pretrain"))
        model = model if level == 1 else model.to(np.float64 if level == 3 else torch.float64)
        value_model, reward_model = (reward_class.from_transformer(model, seed) for seed in (0, 1))
        judged = {name: np.array(value) for name, value in reward_model.state_dict().items()}
        before = {name: np.array(value) for name, value in model.state_dict().items()}
        heard.append([])
        module.train_ppo(
            model,
            value_model,
            reward_model,
            tokenizer.load(run.tokenizer),
            ["Who has the red ball?", "Write a story.", "Where is Tom?", "Who is happy?"],
            module.PpoOptions(max_new_tokens=6, epochs=2, minibatches=2),
            steps=2,
            prompts_per_step=4,
            learning_rate=1e-3,
            after_step=lambda step, metrics, log=heard[-1]: log.append((step, metrics)),
        )
        assert any(not np.array_equal(before[n], np.array(v)) for n, v in model.state_dict().items())
        assert all(np.array_equal(judged[n], np.array(v)) for n, v in reward_model.state_dict().items())
    for log in heard:
        assert [step for step, _ in log] == [1, 2]
        assert np.isfinite([metrics["reward"] for _, metrics in log]).all()
    for name in heard[1][0][1]:
        actual, expected = ([metrics[name] for _, metrics in log] for log in heard[1:])
        parity(
            component="ppo, training with a reward model",
            quantity=name,
            levels="v2-v3",
            actual=actual,
            expected=expected,
            tolerance=4e-15,
        )
