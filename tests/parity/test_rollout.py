"""Rollouts: the same tokens and masks at levels 2 and 3, TRL's layout, and log-probabilities of what was really sampled."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from shared_data.errors import UserError
from tests.parity.inference_cases import prompts, trio
from tests.parity.recorder import ParityRecorder
from tests.parity.training_cases import LEVELS, level_module
from v2_handwritten.align.algorithms import ppo
from v2_handwritten.align.algorithms.rollout import Rollout, collect
from v2_handwritten.models.log_probs import completion_log_probs

CASES = ("gpt2", "llama GQA")
OPTIONS: dict[str, Any] = {"temperature": 0.8, "seed": 5, "num_generations": 3}
STOPS = [3, *range(80, 90)]  # of 96 tokens, so that completions end early, at different lengths


def models(case: str) -> dict[str, Any]:
    """Of levels 2 and 3, which end a completion at any of these tokens."""
    made = dict(zip(LEVELS, trio(case)[1:], strict=True))
    for model in made.values():
        model.config = replace(model.config, eos_token_id=STOPS)
    return made


def log_probs(level: str, model: Any, rollout: Any, temperature: float = 0.8) -> Any:
    arrays = (rollout.input_ids, rollout.completion_mask, rollout.attention_mask)
    found = level_module(level, "models.log_probs").completion_log_probs(model, *arrays, temperature)
    return rollout.of_completions(found)


@pytest.fixture(scope="module", params=CASES)
def rollouts(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The case, the models, and a rollout of each."""
    made = models(request.param)
    modules = {level: level_module(level, "align.algorithms.rollout") for level in LEVELS}
    given = prompts(request.param)
    return request.param, made, {x: modules[x].collect(made[x], given, 12, **OPTIONS) for x in LEVELS}


def test_both_levels_sample_the_same_tokens_with_the_same_log_probs(
    parity: ParityRecorder, rollouts: tuple[str, dict[str, Any], dict[str, Any]]
) -> None:
    case, made, found = rollouts
    two = found["v2"]
    assert len(set(two.mask.sum(1).tolist())) > 2, "completions of different lengths"
    assert 0 < two.finished.sum() < len(two.finished), "some end by themselves, some are cut off"
    for field in fields(Rollout):
        a, b = (np.asarray(getattr(found[level], field.name)) for level in LEVELS)
        np.testing.assert_array_equal(a, b, err_msg=field.name)
    parity(
        component=f"rollout, {case}", quantity="log p of the completions", levels="v2-v3",
        actual=log_probs("v2", made["v2"], two), expected=log_probs("v3", made["v3"], found["v3"]), tolerance=4e-15,
    )  # fmt: skip


def test_the_layout_is_trls_and_one_column_more(rollouts: tuple[str, dict[str, Any], dict[str, Any]]) -> None:
    """The library pads to the longest; we leave a column after a completion that ended, see `ppo.value_mask`."""
    from trl.trainer.utils import pad

    case, _, found = rollouts
    rollout = found["v2"]
    completions = [torch.tensor(ids) for ids in rollout.completions()]
    given = [torch.tensor(prompt) for prompt in prompts(case) for _ in range(3)]
    expected = torch.cat([pad(given, 0, "left"), pad(completions, 0, "right")], 1)
    ones = [[torch.ones_like(ids) for ids in rows] for rows in (given, completions)]
    mask = torch.cat([pad(ones[0], 0, "left"), pad(ones[1], 0, "right")], 1)
    assert torch.equal(rollout.input_ids[:, : expected.shape[1]], expected)
    assert torch.equal(rollout.attention_mask[:, : expected.shape[1]], mask)
    assert not rollout.attention_mask[:, expected.shape[1] :].any()
    assert torch.equal(rollout.completion_mask[:, rollout.prompt_length :], rollout.mask)
    assert not rollout.completion_mask[:, : rollout.prompt_length].any()
    for ids, finished in zip(completions, rollout.finished, strict=True):
        assert bool(finished) == (ids[-1] in STOPS)
        assert finished or len(ids) == 12
    assert len({tuple(ids.tolist()) for ids in completions}) == 9, "completions of one prompt differ"


def test_log_probs_of_a_padded_completion_are_those_of_it_alone(
    rollouts: tuple[str, dict[str, Any], dict[str, Any]],
) -> None:
    """Positions that count the padding, or attention that reads it, would change every number of the shorter prompts."""
    case, made, found = rollouts
    rollout, model = found["v2"], made["v2"]
    together = log_probs("v2", model, rollout)
    given = [prompt for prompt in prompts(case) for _ in range(3)]
    for row, (prompt, completion) in enumerate(zip(given, rollout.completions(), strict=True)):
        logits = model(torch.tensor([prompt + completion]))[0, len(prompt) - 1 : -1] / 0.8
        alone = torch.log_softmax(logits, -1)[torch.arange(len(completion)), completion]
        torch.testing.assert_close(together[row, : len(completion)], alone, rtol=0, atol=1e-12)
        assert not together[row, len(completion) :].any()


def test_tokens_come_from_the_tempered_distribution() -> None:
    """And not from the model's own: the log-probabilities of a rollout must be divided by the same temperature.

    6,000 draws of 96 tokens miss the true distribution by about √(96 / 6000) / 2 ≈ 0.06 in total variation.
    """
    model = models("llama GQA")["v2"]
    (prompt, *_), draws = prompts("llama GQA"), 6000
    rollout = collect(model, [prompt], 1, temperature=0.5, seed=1, num_generations=draws)
    seen = torch.bincount(rollout.input_ids[:, -1], minlength=96) / draws
    logits = model(torch.tensor([prompt]))[0, -1]
    tempered, plain = (torch.softmax(logits / t, -1) for t in (0.5, 1.0))
    assert (seen - tempered).abs().sum() / 2 < 0.08
    assert (seen - plain).abs().sum() / 2 > 0.2
    found = completion_log_probs(
        model, rollout.input_ids, rollout.completion_mask, rollout.attention_mask, 0.5
    )
    torch.testing.assert_close(found[:5, -1], tempered.log()[rollout.input_ids[:5, -1]], rtol=0, atol=1e-12)


def test_where_a_completion_is_paid_does_not_depend_on_the_batch() -> None:
    """Else the longest completion of a batch would be paid on its last token, and in another batch one place later."""
    model = models("llama GQA")["v2"]
    first, *_ = prompts("llama GQA")
    places, widths = [], []
    for count in (1, 20):  # the first completion is the same in both
        rollout = collect(model, [first], 12, **OPTIONS | {"seed": 3, "num_generations": count})
        zeros = torch.zeros(rollout.mask.shape)
        rewards = ppo.token_rewards(zeros, zeros, torch.ones(count), rollout.mask)
        places.append(rewards[0].nonzero().tolist())
        widths.append(rollout.mask.shape[1])
    assert widths[0] < widths[1] == 12
    assert places[0] == places[1]


@pytest.mark.parametrize("level", LEVELS)
def test_what_cannot_be_sampled_is_named(level: str) -> None:
    sample, model = level_module(level, "align.algorithms.rollout").collect, models("gpt2")[level]
    with pytest.raises(UserError, match="temperature above 0"):
        sample(model, [[5]], 4, temperature=0.0)
    with pytest.raises(UserError, match="prompt 2 of 120 tokens and a completion of up to 12 exceed"):
        sample(model, [[5], [5] * 120], 12)


def test_a_model_in_training_samples_without_dropout_and_goes_on() -> None:
    model = models("gpt2")["v2"]
    quiet = collect(model, prompts("gpt2"), 12, **OPTIONS)
    model.transformer.dropout = 0.5
    noisy = collect(model.train(), prompts("gpt2"), 12, **OPTIONS)
    assert torch.equal(quiet.input_ids, noisy.input_ids)
    assert model.training
