"""Rollouts: the same tokens and masks at levels 2 and 3, TRL's layout, and log-probabilities of what was really sampled."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from v2_handwritten.align.algorithms.log_probabilities import reply_log_probabilities as log_probabilities2
from v3_numpy_deep.align.algorithms.log_probabilities import reply_log_probabilities as log_probabilities3

from shared_data.errors import UserError
from tests.parity.inference_cases import prompts, trio
from tests.parity.recorder import ParityRecorder
from v1_quick.align.algorithms import rollout as rollout1
from v2_handwritten.align.algorithms import ppo
from v2_handwritten.align.algorithms import rollout as rollout2
from v3_numpy_deep.align.algorithms import rollout as rollout3

CASES = ("gpt2", "llama GQA")
OPTIONS: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.8, "seed": 5, "replies_per_prompt": 3}
STOPS = [3, *range(80, 90)]  # of 96 tokens, so that replies end early, at different lengths
NAMES = [field.name for field in fields(rollout2.Rollout)]


def rollouts(case: str) -> tuple[Any, Any, rollout2.Rollout, rollout3.Rollout]:
    _, ours, arrays = trio(case)
    collected = [
        module.collect(model, prompts(case), eos_token_id=STOPS, **OPTIONS)
        for module, model in ((rollout2, ours), (rollout3, arrays))
    ]
    return ours, arrays, *collected


@pytest.mark.parametrize("case", CASES)
def test_levels_2_and_3_sample_the_same_rollouts_with_the_same_log_probabilities(
    parity: ParityRecorder, case: str
) -> None:
    ours, arrays, two, three = rollouts(case)
    lengths = two.reply_mask.sum(1)
    assert len(set(lengths.tolist())) > 2, "replies of different lengths"
    assert 0 < two.finished.sum() < len(two.finished), "some end by themselves, some are cut off"
    for name in NAMES:
        assert np.array_equal(np.asarray(getattr(two, name)), np.asarray(getattr(three, name))), name
    given = ("input_ids", "reply_mask", "attention_mask")
    parity(
        component=f"rollout, {case}",
        quantity="log p of the replies",
        levels="v2-v3",
        actual=two.of_replies(log_probabilities2(ours, *(getattr(two, name) for name in given), 0.8)),
        expected=three.of_replies(log_probabilities3(arrays, *(getattr(three, name) for name in given), 0.8)),
        tolerance=4e-15,
    )


def test_the_layout_is_the_librarys(parity: ParityRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Level 1 is given the tokens of level 2, and pads them with TRL's function."""
    library, *_ = trio("gpt2")
    _, _, ours, _ = rollouts("gpt2")
    monkeypatch.setattr(rollout1, "generate", lambda *_, **__: ours.replies())
    theirs = rollout1.collect(library, prompts("gpt2"), eos_token_id=STOPS, **OPTIONS)
    for name in NAMES:
        parity(
            component="rollout",
            quantity=name,
            levels="v2-v1",
            actual=getattr(ours, name),
            expected=getattr(theirs, name),
            tolerance=0.0,
        )


def test_the_library_samples_a_rollout_by_itself() -> None:
    library, *_ = trio("gpt2")
    rollout = rollout1.collect(library, prompts("gpt2"), eos_token_id=STOPS, **OPTIONS)
    assert rollout.input_ids.shape == rollout.reply_mask.shape == rollout.attention_mask.shape
    assert len(rollout.finished) == 9


@pytest.mark.parametrize("case", CASES)
def test_the_log_probability_of_a_padded_reply_is_that_of_the_reply_alone(case: str) -> None:
    """Positions that count the padding, or attention that reads it, would change every number of the shorter prompts."""
    ours, _, rollout, _ = rollouts(case)
    given = (rollout.input_ids, rollout.reply_mask, rollout.attention_mask)
    together = rollout.of_replies(log_probabilities2(ours, *given, temperature=0.8))
    asked = [prompt for prompt in prompts(case) for _ in range(3)]
    for row, (prompt, reply) in enumerate(zip(asked, rollout.replies(), strict=True)):
        logits = ours(torch.tensor([prompt + reply]))[0, len(prompt) - 1 : -1] / 0.8
        alone = torch.log_softmax(logits, -1)[torch.arange(len(reply)), reply]
        torch.testing.assert_close(together[row, : len(reply)], alone, rtol=0, atol=1e-12)
        assert not together[row, len(reply) :].any()


def test_tokens_come_from_the_tempered_distribution() -> None:
    """And not from the model's own: the log-probabilities of a rollout must be divided by the same temperature.

    6,000 draws of 96 tokens miss the true distribution by about √(96 / 6000) / 2 ≈ 0.06 in total variation.
    """
    _, ours, _ = trio("llama GQA")
    (prompt, *_) = prompts("llama GQA")
    draws = 6000
    rollout = rollout2.collect(ours, [prompt], 1, temperature=0.5, seed=1, replies_per_prompt=draws)
    seen = torch.bincount(rollout.input_ids[:, -1], minlength=96) / draws
    logits = ours(torch.tensor([prompt]))[0, -1]
    tempered, plain = (torch.softmax(logits / t, -1) for t in (0.5, 1.0))
    assert (seen - tempered).abs().sum() / 2 < 0.08
    assert (seen - plain).abs().sum() / 2 > 0.2


def test_replies_to_one_prompt_stand_together_and_differ() -> None:
    _, _, rollout, _ = rollouts("llama GQA")
    replies = rollout.replies()
    assert len({tuple(reply) for reply in replies}) == 9
    P = rollout.prompt_length
    for row, prompt in enumerate(prompt for prompt in prompts("llama GQA") for _ in range(3)):
        real = rollout.attention_mask[row, :P].bool()
        assert rollout.input_ids[row, :P][real].tolist() == prompt
    for row, reply in enumerate(replies):
        assert bool(rollout.finished[row]) == (reply[-1] in STOPS)
        assert rollout.finished[row] or len(reply) == 12


def test_a_reply_that_ends_has_a_column_after_it_whatever_else_is_in_the_batch() -> None:
    """Else the longest reply of a batch would be paid on its last token, and in another batch one place later."""
    _, ours, _ = trio("llama GQA")
    first, *_ = prompts("llama GQA")
    places, widths = [], []
    for replies in (1, 20):  # the first reply is the same in both
        options = OPTIONS | {"seed": 3, "replies_per_prompt": replies}
        rollout = rollout2.collect(ours, [first], eos_token_id=STOPS, **options)
        mask = rollout.reply_mask[:, rollout.prompt_length :]
        zeros = torch.zeros(mask.shape)
        rewards = ppo.token_rewards(zeros, zeros, torch.ones(replies), mask)
        places.append(rewards[0].nonzero().tolist())
        widths.append(mask.shape[1])
    assert widths[0] < widths[1] == 12
    assert places[0] == places[1]


def test_what_cannot_be_sampled_is_named() -> None:
    for module, model in zip((rollout2, rollout3), trio("gpt2")[1:], strict=True):
        with pytest.raises(UserError, match="temperature above 0"):
            module.collect(model, [[5]], 4, temperature=0.0)
        with pytest.raises(UserError, match="prompt 2 of 120 tokens and a reply of up to 12 exceed"):
            module.collect(model, [[5], [5] * 120], 12)


def test_a_model_in_training_samples_without_dropout_and_goes_on_training() -> None:
    _, ours, _ = trio("gpt2")
    options = {"eos_token_id": STOPS, **OPTIONS}
    quiet = rollout2.collect(ours, prompts("gpt2"), **options)
    ours.transformer.dropout = 0.5
    noisy = rollout2.collect(ours.train(), prompts("gpt2"), **options)
    assert torch.equal(quiet.input_ids, noisy.input_ids)
    assert ours.training


def test_gpt2_needs_positions_that_count_from_the_first_real_token() -> None:
    """What TRL's GRPO leaves out: with the attention mask alone, a padded prompt of GPT-2 gets other logits."""
    library, *_ = trio("gpt2")
    (prompt, *_) = prompts("gpt2")
    padded, mask = torch.tensor([[0, 0, 0, *prompt]]), torch.tensor([[0] * 3 + [1] * len(prompt)])
    alone = library.library(torch.tensor([prompt])).logits[0]
    without = library.library(padded, attention_mask=mask).logits[0, 3:]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    counted = library.library(padded, attention_mask=mask, position_ids=positions).logits[0, 3:]
    assert (without - alone).abs().max() > 0.1
    torch.testing.assert_close(counted, alone, rtol=0, atol=1e-12)
