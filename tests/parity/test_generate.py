"""All levels: greedy ids are those of transformers' generate, however they are computed; levels 2 and 3 draw the same tokens."""

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from shared_data.errors import UserError
from shared_data.evaluation.windows import score_tokens
from tests.parity.arrays import integers
from tests.parity.inference_cases import prompts, trio
from tests.parity.model_cases import CASES
from tests.parity.recorder import ParityRecorder
from v1_quick.inference.generate import generate as generate_v1
from v2_handwritten.inference.generate import generate as generate_v2
from v2_handwritten.inference.scoring import negative_log_probs as negative_log_probs_v2
from v3_numpy_deep.inference.generate import generate as generate_v3
from v3_numpy_deep.inference.scoring import negative_log_probs as negative_log_probs_v3

GENERATORS = (generate_v1, generate_v2, generate_v3)


FREE: dict[str, Any] = {"eos_token_id": []}  # a sequence that stops nowhere


def by_level(case: str, inputs: list[list[int]], dtype: torch.dtype = torch.float64, **options: Any) -> list:
    """The new ids of each level."""
    return [
        generate(model, inputs, **FREE | options)
        for generate, model in zip(GENERATORS, models(case, dtype), strict=True)
    ]


def models(case: str, dtype: torch.dtype = torch.float64) -> tuple[Any, Any, Any]:
    """Each level's own: of level 1, transformers' model itself."""
    library, ours, arrays = trio(case, dtype)
    return library.library, ours, arrays


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "recomputed"])
def test_greedy_ids_equal_those_of_the_library(parity: ParityRecorder, case: str, use_cache: bool) -> None:
    """A batch of prompts of different lengths, behind padding."""
    new = 30 if use_cache else 8
    library, ours, arrays = by_level(case, prompts(case), max_new_tokens=new, use_cache=use_cache)
    assert not use_cache or len({id for row in library for id in row}) >= 5, (
        "the models should have something to say"
    )
    for levels, ids in (("v2-v1", ours), ("v3-v1", arrays)):
        parity(
            component=f"generate, {'cached' if use_cache else 'recomputed'}",
            quantity="greedy ids",
            levels=levels,
            actual=ids,
            expected=library,
            tolerance=0.0,
        )


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_greedy_ids_are_the_same_in_float32(case: str) -> None:
    library, ours, arrays = by_level(case, prompts(case), dtype=torch.float32, max_new_tokens=30)
    assert library == ours == arrays


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_the_library_called_directly_gives_the_same_ids(case: str) -> None:
    """Level 1 adds nothing of its own: `model.generate(input_ids)` as in transformers' documentation."""
    library, ours, _ = models(case)
    prompt = prompts(case)[0]
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = library.generate(torch.tensor([prompt]), **options)
    assert ids[0, len(prompt) :].tolist() == generate_v2(ours, [prompt], max_new_tokens=20, **FREE)[0]


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_a_prompt_gives_in_a_batch_what_it_gives_alone(case: str) -> None:
    for generate, model in zip(GENERATORS, models(case), strict=True):
        together = generate(model, prompts(case), max_new_tokens=20, **FREE)
        assert together == [
            generate(model, [prompt], max_new_tokens=20, **FREE)[0] for prompt in prompts(case)
        ]


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
@pytest.mark.parametrize("level", [2, 3])
def test_a_repeated_prompt_is_read_once(monkeypatch: pytest.MonkeyPatch, case: str, level: int) -> None:
    """A group of completions costs one prefill, and each is drawn as if its prompt had been read for it alone."""
    generate, model = GENERATORS[level - 1], trio(case)[level - 1]
    first, second, _ = prompts(case)
    repeated = [first, second, first, first]
    options = FREE | {"max_new_tokens": 20, "temperature": 0.8, "seed": 3}
    module, prefilled = sys.modules[generate.__module__.replace("generate", "steps")], []
    cache = module.KVCache
    monkeypatch.setattr(
        module, "KVCache", lambda config, rows, *more: prefilled.append(rows) or cache(config, rows, *more)
    )
    apart = generate(model, repeated, use_cache=False, **options)
    assert generate(model, repeated, **options) == apart
    assert len({tuple(ids) for ids in apart}) == 4, "each row draws its own"
    assert prefilled == [2]


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "recomputed"])
def test_levels_2_and_3_draw_the_same_tokens(case: str, use_cache: bool) -> None:
    options = FREE | {
        "max_new_tokens": 30 if use_cache else 8,
        "temperature": 1.5,
        "top_k": 50,
        "top_p": 0.97,
        "use_cache": use_cache,
    }
    _, ours, arrays = trio(case)
    drawn = [generate_v2(ours, prompts(case), seed=seed, **options) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2], "the seed decides, and nothing else"
    assert generate_v3(arrays, prompts(case), seed=0, **options) == drawn[0]


def test_a_row_draws_the_same_tokens_whatever_stands_below_it() -> None:
    _, ours, _ = trio("llama GQA")
    first, second, _ = prompts("llama GQA")
    options = FREE | {"max_new_tokens": 20, "temperature": 1.0, "seed": 3}
    assert generate_v2(ours, [first, second], **options)[0] == generate_v2(ours, [first], **options)[0]


def test_the_library_samples_with_its_seed() -> None:
    library, _, _ = models("llama GQA")
    options = FREE | {"max_new_tokens": 20, "temperature": 1.0, "top_p": 0.9}
    state = torch.get_rng_state()
    drawn = [generate_v1(library, prompts("llama GQA"), seed=seed, **options) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(state, torch.get_rng_state()), "the global generator is left as it was"


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_a_sequence_stops_at_the_end_of_text_and_the_others_go_on(case: str) -> None:
    free = by_level(case, prompts(case), max_new_tokens=30)[0]
    stops = [free[0][6], free[2][11]]
    for ids in by_level(case, prompts(case), max_new_tokens=30, eos_token_id=stops):
        for row, without in zip(ids, free, strict=True):
            last = min([index for index, id in enumerate(without) if id in stops], default=29)
            assert row == without[: last + 1]


def test_on_token_receives_every_new_token() -> None:
    case = "gpt2"
    free = by_level(case, prompts(case), max_new_tokens=12)[0]
    for generate, model in zip(GENERATORS, models(case), strict=True):
        received: list[list[int]] = [[], [], []]
        ids = generate(
            model,
            prompts(case),
            max_new_tokens=12,
            eos_token_id=free[0][4],
            on_token=lambda row, id, received=received: received[row].append(id),
        )
        assert received == ids


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_a_text_that_fills_the_positions_stops_and_shorter_ones_go_on(case: str) -> None:
    inputs = prompts(case, (120, 3))  # of 128 positions
    library, *by_hand = by_level(case, inputs, max_new_tokens=40)
    for ids in by_hand:
        assert [len(row) for row in ids] == [8, 40]
    assert library == [row[:8] for row in ids], "the library stops them all"
    _, ours, _ = trio(case)
    assert generate_v2(ours, inputs, max_new_tokens=12, use_cache=False, **FREE) == [row[:12] for row in ids]


def test_an_empty_prompt_begins_with_the_end_of_text() -> None:
    for generate, model in zip(GENERATORS, models("gpt2"), strict=True):
        begun = generate(model, [[]], max_new_tokens=8, eos_token_id=3)
        assert begun == generate(model, [[3]], max_new_tokens=8, eos_token_id=3)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([], {}, "no prompt"),
        ([[]], {}, "empty"),
        ([[5] * 128], {}, "128 tokens leaves no room in the model's 128 positions"),
        ([[5]], {"temperature": 1.0, "top_p": 2.0}, "top_p"),
    ],
)
def test_what_cannot_be_generated_is_named(inputs: list, options: dict, message: str) -> None:
    for generate, model in zip(GENERATORS, models("gpt2"), strict=True):
        with pytest.raises(UserError, match=message):
            generate(model, inputs, max_new_tokens=4, **FREE | options)


@pytest.mark.parametrize("level", [2, 3])
def test_a_sequence_stops_by_default_where_the_model_is_configured_to(level: int) -> None:
    """`config.eos_token_id`, as in transformers; the id that stops it is returned."""
    generate, model = GENERATORS[level - 1], trio("gpt2")[level - 1]
    (free,) = generate(model, prompts("gpt2")[:1], max_new_tokens=20, **FREE)
    model.config = replace(model.config, eos_token_id=[free[6], 95])
    (ids,) = generate(model, prompts("gpt2")[:1], max_new_tokens=20)
    assert ids == free[: free.index(free[6]) + 1]


def test_a_model_in_training_writes_without_dropout_and_goes_on_training() -> None:
    """As the samples during pretraining do; the same holds for the score of held-out text."""
    tokens = integers(3, 96, 60)
    for level, negative_log_probs in ((2, negative_log_probs_v2), (3, negative_log_probs_v3)):
        generate, model = GENERATORS[level - 1], trio("llama GQA")[level - 1]

        def numbers(
            generate: Any = generate, model: Any = model, negative_log_probs: Any = negative_log_probs
        ) -> Any:
            ids = generate(model, [[5, 6]], max_new_tokens=10, use_cache=False)
            return ids, score_tokens(negative_log_probs, model, tokens, 16, stride=8, batch_size=4)

        quiet = numbers()
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.5
        model.train()
        assert numbers() == quiet
        assert model.training
