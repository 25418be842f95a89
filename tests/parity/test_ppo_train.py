"""Updates of PPO in lockstep at levels 2 and 3: the same replies, the same numbers, the same weights; and reward goes up."""

from typing import Any

import numpy as np
import torch

from tests.parity.inference_cases import prompts, trio
from tests.parity.recorder import ParityRecorder
from tests.parity.rl_cases import compare_weights, even_tokens
from v2_handwritten.align import ppo_train as ppo2
from v2_handwritten.align.algorithms.log_probabilities import frozen_copy as frozen2
from v2_handwritten.models.reward_model import RewardModel as RewardModel2
from v2_handwritten.pretrain.components.optimizers import AdamW as AdamW2
from v3_numpy_deep.align import ppo_train as ppo3
from v3_numpy_deep.align.algorithms.log_probabilities import frozen_copy as frozen3
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
