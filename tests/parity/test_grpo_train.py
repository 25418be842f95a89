"""Updates of GRPO in lockstep at levels 2 and 3: the same replies, the same numbers, the same weights; and reward goes up."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from v2_handwritten.align.algorithms.log_probabilities import frozen_copy as frozen2
from v3_numpy_deep.align.algorithms.log_probabilities import frozen_copy as frozen3

from shared_data.errors import UserError
from tests.parity.inference_cases import prompts, small_run, trio
from tests.parity.recorder import ParityRecorder
from tests.parity.rl_cases import compare_weights, even_tokens
from v1_quick.align import grpo_train as grpo1
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer1
from v1_quick.models.checkpoint import load_model as load1
from v2_handwritten.align import grpo_train as grpo2
from v2_handwritten.align import ppo_train as ppo2
from v2_handwritten.align.algorithms.rollout import collect as collect2
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer2
from v2_handwritten.models.checkpoint import load_model as load2
from v2_handwritten.pretrain.components import optimizers as optimizers2
from v3_numpy_deep.align import grpo_train as grpo3
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer3
from v3_numpy_deep.models.checkpoint import load_model as load3
from v3_numpy_deep.pretrain.components import optimizers as optimizers3

CASE = "llama GQA"
ASKED = ["Who has the red ball?", "Write a story.", "Where is Tom?"]
OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "group_size": 4, "temperature": 0.9, "beta": 0.1}


def adamw(module: Any, model: Any, learning_rate: float = 1e-2) -> Any:
    """The optimizer of a level."""
    return module.AdamW(module.parameter_groups(model, 0.01), learning_rate)


def test_three_updates_in_lockstep(parity: ParityRecorder) -> None:
    """Two epochs of two minibatches each: the later ones see ratios other than 1, and clip."""
    _, two, three = trio(CASE)
    logs: list[list[dict[str, float]]] = [[], []]
    options = OPTIONS | {"epochs": 2, "minibatches": 2}
    optimizer2, optimizer3 = adamw(optimizers2, two), adamw(optimizers3, three)
    for log, module, model, optimizer, reference in (
        (logs[0], grpo2, two, optimizer2, frozen2(two)),
        (logs[1], grpo3, three, optimizer3, frozen3(three)),
    ):
        for step in range(3):
            log.append(
                module.grpo_step(
                    model,
                    optimizer,
                    reference,
                    prompts(CASE),
                    even_tokens,
                    module.GrpoOptions(**options),
                    seed=step,
                )
            )
    assert logs[0][-1]["kl"] > 0.01, "the policy has left the reference"
    assert max(log["clip_ratio/region_mean"] for log in logs[0]) > 0, "something was clipped"
    for name in logs[0][0]:
        actual, expected = ([log[name] for log in side] for side in logs)
        parity(
            component="grpo, three updates",
            quantity=name,
            levels="v2-v3",
            actual=actual,
            expected=expected,
            tolerance=4e-13,
        )
    compare_weights(parity, "grpo, three updates", two, three, tolerance=4e-13)


def test_reward_rises_and_the_reference_stays() -> None:
    _, model, _ = trio(CASE)
    reference = frozen2(model)
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    optimizer = adamw(optimizers2, model)
    options = grpo2.GrpoOptions(**OPTIONS)
    rewards = [
        grpo2.grpo_step(model, optimizer, reference, prompts(CASE), even_tokens, options, seed)["reward"]
        for seed in range(12)
    ]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.2
    assert all(torch.equal(before[name], value) for name, value in reference.state_dict().items())


def test_the_ratio_stays_one_as_long_as_no_weight_moves() -> None:
    """Dropout would move it, or another temperature in one of the two log-probabilities."""
    _, model, _ = trio(CASE)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    optimizer = adamw(optimizers2, model.train(), learning_rate=0.0)
    options = grpo2.GrpoOptions(**OPTIONS | {"epochs": 2, "beta": 0.0})
    log = grpo2.grpo_step(model, optimizer, None, prompts(CASE), even_tokens, options, seed=0)
    assert log["clip_ratio/region_mean"] == 0
    assert "kl" not in log


def test_an_update_reads_the_distribution_that_was_sampled_from() -> None:
    """All three log-probabilities are tempered: the entropy that is reported is that of softmax(z / temperature)."""
    _, model, _ = trio(CASE)
    for module in (grpo2, ppo2):
        options = (
            grpo2.GrpoOptions(max_new_tokens=8, temperature=0.5)
            if module is grpo2
            else ppo2.PpoOptions(max_new_tokens=8, temperature=0.5)
        )
        rollout = collect2(model, prompts(CASE)[:1], 8, temperature=0.5, seed=2)
        found = module._log_probabilities(model, rollout, options)
        logits = model(rollout.input_ids)[:, rollout.prompt_length - 1 : -1]
        ids = rollout.input_ids[:, rollout.prompt_length :].unsqueeze(-1)
        tempered = torch.log_softmax(logits / 0.5, -1).gather(-1, ids).squeeze(-1)
        torch.testing.assert_close(found, tempered, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_stops_before_any_weight_moves(bad: float) -> None:
    _, two, three = trio(CASE)
    for module, model, optimizer in (
        (grpo2, two, adamw(optimizers2, two)),
        (grpo3, three, adamw(optimizers3, three)),
    ):
        before = {name: np.array(value) for name, value in model.state_dict().items()}

        def score(replies: list[list[int]]) -> list[float]:
            return [0.0] * (len(replies) - 1) + [bad]

        with pytest.raises(UserError, match="for reply 12; return a finite number"):
            module.grpo_step(
                model, optimizer, None, prompts(CASE), score, module.GrpoOptions(**OPTIONS), seed=0
            )
        assert all(np.array_equal(before[name], np.array(v)) for name, v in model.state_dict().items())


def vowels(prompts: list[str], replies: list[str]) -> list[float]:
    """A reward of texts that differs from reply to reply."""
    return [sum(letter in "aeiou" for letter in reply) / 10 for reply in replies]


def test_training_on_texts_is_the_same_at_levels_2_and_3_and_runs_at_level_1(
    parity: ParityRecorder, tmp_path: Path
) -> None:
    run = small_run(tmp_path, "model.max_position_embeddings=128")
    heard: list[list[tuple[int, dict[str, float]]]] = []
    for level, load, tokenizer, module in (
        (1, load1, Tokenizer1, grpo1),
        (2, load2, Tokenizer2, grpo2),
        (3, load3, Tokenizer3, grpo3),
    ):
        model = load(run.model("pretrain"))
        model = model if level == 1 else model.to(np.float64 if level == 3 else torch.float64)
        before = {name: np.array(value) for name, value in model.state_dict().items()}
        heard.append([])
        module.train_grpo(
            model,
            tokenizer.load(run.tokenizer),
            ASKED,
            vowels,
            module.GrpoOptions(max_new_tokens=6, group_size=3, beta=0.05, minibatches=2, epochs=2),
            steps=2,
            prompts_per_step=2,
            learning_rate=1e-3,
            after_step=lambda step, metrics, log=heard[-1]: log.append((step, metrics)),
        )
        assert any(not np.array_equal(before[n], np.array(v)) for n, v in model.state_dict().items())
    for log in heard:
        assert [step for step, _ in log] == [1, 2]
        assert all(0 <= metrics["reward"] < 1 for _, metrics in log)
        assert log[1][1]["kl"] != 0, "the reference is another model by now"
    for name in heard[1][0][1]:
        actual, expected = ([metrics[name] for _, metrics in log] for log in heard[1:])
        parity(
            component="grpo, training on texts",
            quantity=name,
            levels="v2-v3",
            actual=actual,
            expected=expected,
            tolerance=4e-15,
        )
