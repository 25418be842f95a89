"""Sampling inside `generate`: levels 2 and 3 draw the same with every setting, level 1 hands all of them to the library, each request has its seed."""

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from shared_data.errors import UserError
from tests.parity.inference_cases import prompts, trio
from tests.parity.test_generate import FREE, GENERATORS, generate_v1, generate_v2, generate_v3, models

EVERYTHING: dict[str, Any] = {
    "temperature": 1.4,
    "top_k": 60,
    "top_p": 0.98,
    "min_p": 0.01,
    "typical_p": 0.95,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.3,
    "frequency_penalty": 0.2,
    "no_repeat_ngram_size": 2,
    "logit_bias": {5: 2.0, 9: float("-inf")},
}


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "recomputed"])
def test_levels_2_and_3_draw_the_same_tokens_with_every_setting(case: str, use_cache: bool) -> None:
    options = (
        FREE | EVERYTHING | {"max_new_tokens": 30 if use_cache else 6, "use_cache": use_cache, "seed": 4}
    )
    _, ours, arrays = trio(case)
    drawn = generate_v2(ours, prompts(case), **options)
    assert drawn == generate_v3(arrays, prompts(case), **options)
    assert all(9 not in ids for ids in drawn)


@pytest.mark.parametrize("name", [name for name in EVERYTHING if name != "temperature"])
def test_each_setting_changes_what_is_drawn(name: str) -> None:
    """Sharp values, so that a setting that never arrives is noticed."""
    sharp = {"top_k": 2, "top_p": 0.3, "min_p": 0.5, "typical_p": 0.2, "repetition_penalty": 3.0}
    sharp |= {"presence_penalty": 9.0, "frequency_penalty": 9.0, "no_repeat_ngram_size": 1}
    value = {name: sharp.get(name, EVERYTHING[name])}
    _, ours, arrays = trio("llama GQA")
    for generate, model in ((generate_v2, ours), (generate_v3, arrays)):
        options = FREE | {"max_new_tokens": 30, "temperature": 1.4}
        plain = generate(model, prompts("llama GQA"), **options)
        assert generate(model, prompts("llama GQA"), **options | value) != plain


def test_a_prompt_with_a_seed_of_its_own_draws_what_it_draws_alone() -> None:
    _, ours, arrays = trio("gpt2")
    inputs, seeds = [*prompts("gpt2"), prompts("gpt2")[0]], [7, 3, 7, 8]
    options = FREE | {"max_new_tokens": 20, "temperature": 1.2}
    for generate, model in ((generate_v2, ours), (generate_v3, arrays)):
        together = generate(model, inputs, seed=seeds, **options)
        alone = [
            generate(model, [row], seed=seed, **options)[0] for row, seed in zip(inputs, seeds, strict=True)
        ]
        assert together == alone
        assert together[0] != together[3], "another seed, another text of the same prompt"


def test_level_1_hands_every_setting_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    library, _, _ = models("gpt2")
    given: list[GenerationConfig] = []

    def generate(ids: torch.Tensor, *, generation_config: GenerationConfig, **_: Any) -> torch.Tensor:
        given.append(generation_config)
        return torch.cat([ids, ids[:, :1]], 1)

    monkeypatch.setattr(library, "generate", generate)
    options = {
        name: value
        for name, value in EVERYTHING.items()
        if name not in ("presence_penalty", "frequency_penalty")
    }
    generate_v1(library, [[5]], max_new_tokens=1, **FREE | options)
    bias = [[[5], 2.0], [[9], float("-inf")]]
    assert given[0].sequence_bias == bias
    assert {name: getattr(given[0], name) for name in options if name != "logit_bias"} == {
        name: value for name, value in options.items() if name != "logit_bias"
    }
    assert given[0].do_sample


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "negative temperature": ({"temperature": -1.0}, "temperature -1.0 is not from 1e-30 .*; choose"),
    "NaN for the temperature": ({"temperature": float("nan")}, "temperature nan is not from .*; choose"),
    "top_p of 0, greedy": ({"top_p": 0.0}, r"top_p 0.0 is not in \(0, 1\]; 0.95"),
    "top_k of 0": ({"temperature": 1.0, "top_k": 0}, "top_k 0 is no integer above 0; leave it out"),
    "min_p above 1": ({"temperature": 1.0, "min_p": 1.5}, r"min_p 1.5 is not in \[0, 1\]; 0.05"),
    "typical_p of 0": ({"temperature": 1.0, "typical_p": 0.0}, r"typical_p 0.0 is not in \(0, 1\]; 0.9"),
    "typical_p above 1": ({"typical_p": 1.1}, r"typical_p 1.1 is not in"),
    "repetition_penalty of 0": ({"repetition_penalty": 0.0}, "repetition_penalty 0.0 is not above 0; 1 changes nothing"),
    "infinite presence_penalty": ({"presence_penalty": float("inf")}, "presence_penalty inf is no finite number; choose"),
    "NaN for frequency_penalty": ({"frequency_penalty": float("nan")}, "frequency_penalty nan is no finite number; choose"),
    "negative n-grams": ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size -1 is no integer of at least 0; 3 is common"),
    "no beams": ({"num_beams": 0}, "num_beams 0 is no integer above 0; 1 is no beam search"),
    "another early_stopping": ({"early_stopping": "soon"}, "early_stopping 'soon' is not known; choose true, false"),
    "infinite length_penalty": ({"length_penalty": float("inf")}, "length_penalty inf is not between -50 and 50; 1 is"),
    "an unknown id": ({"logit_bias": {96: 1.0}}, "logit_bias has the id 96, and the model's ids are 0 to 95; use ids"),
    "NaN for a bias": ({"logit_bias": {5: float("nan")}}, "logit_bias has 5: nan; map ids to finite numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_parameter_out_of_range_is_one_line_at_every_level(name: str) -> None:
    options, message = MISTAKES[name]
    for generate, model in zip(GENERATORS, models("gpt2"), strict=True):
        with pytest.raises(UserError, match=message):
            generate(model, [[5]], max_new_tokens=2, **FREE | options)


def test_seeds_are_one_or_one_for_each_prompt() -> None:
    library, ours, arrays = models("gpt2")
    for generate, model in ((generate_v2, ours), (generate_v3, arrays)):
        with pytest.raises(
            UserError, match="there are 2 seeds for 1 prompts; pass one for each, or one for all"
        ):
            generate(model, [[5]], max_new_tokens=2, seed=[1, 2])
        with pytest.raises(UserError, match="the seed is -1; choose"):
            generate(model, [[5]], max_new_tokens=2, seed=[-1])
    with pytest.raises(UserError, match="draws all rows from one generator; pass one seed"):
        generate_v1(library, [[5]], max_new_tokens=2, seed=[1])


def test_level_1_says_which_penalties_the_library_has_not() -> None:
    for name in ("presence_penalty", "frequency_penalty"):
        with pytest.raises(
            UserError, match=r"transformers has no presence_penalty .*; use repetition_penalty"
        ):
            generate_v1(models("gpt2")[0], [[5]], max_new_tokens=2, **{name: 0.5})
