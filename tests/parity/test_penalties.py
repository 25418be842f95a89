"""Penalties are transformers' processors, in its order, for each row without its padding; those it lacks follow OpenAI's formula."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from shared_data.errors import UserError
from shared_data.inference.sampling_parameters import SamplingParameters
from tests.parity.arrays import array
from tests.parity.inference_cases import prompts, trio
from tests.parity.recorder import ParityRecorder
from v2_handwritten.inference import penalties as v2
from v2_handwritten.inference.generate import generate as generate_v2
from v3_numpy_deep.inference import penalties as v3
from v3_numpy_deep.inference.generate import generate as generate_v3

V = 20
# Of different lengths, with repeated tokens and n-grams; the last one is shorter than an n-gram.
SEQUENCES = [[5, 6, 7, 5, 6, 7, 5, 6], [9, 9, 9, 9], [1, 2, 3, 4, 1, 2, 8, 1, 2], [4]]
BIAS = {3: 2.5, 7: -1.25, 0: float("-inf")}


def logits_of(kind: str) -> np.ndarray:
    """Positive and negative logits; many equal, zeros among them; many forbidden already."""
    spread = array(4, len(SEQUENCES), V, scale=2.0, dtype=np.float32)
    forbidden = np.where(np.arange(V) % 3 == 1, -np.inf, spread).astype(np.float32)
    return {"different": spread, "ties": np.round(spread / 2), "forbidden": forbidden}[kind]


def padded(sequences: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-aligned behind an id that no sequence has, and the length of the padding. (The library's n-grams count the padding.)"""
    longest = max(map(len, sequences))
    ids = torch.tensor([[V - 1] * (longest - len(row)) + row for row in sequences])
    return ids, torch.tensor([longest - len(row) for row in sequences])


def by_level(logits: np.ndarray, **parameters: Any) -> tuple[np.ndarray, np.ndarray]:
    """Levels 2 and 3, with nothing generated yet."""
    arguments = SEQUENCES, [len(row) for row in SEQUENCES], SamplingParameters(**parameters)
    return v2.apply_penalties(torch.from_numpy(logits), *arguments).numpy(), v3.apply_penalties(
        logits, *arguments
    )


@pytest.mark.parametrize("kind", ["different", "ties", "forbidden"])
@pytest.mark.parametrize(
    "parameters",
    [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.5},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 3},
        {"logit_bias": BIAS},
    ],
    ids=lambda parameters: "-".join(map(str, next(iter(parameters.items())))).replace(" ", "")[:26],
)
def test_each_penalty_equals_the_library_s_processor(
    parity: ParityRecorder, kind: str, parameters: dict[str, Any]
) -> None:
    logits, (ids, starts) = logits_of(kind), padded(SEQUENCES)
    ((name, value),) = parameters.items()
    process = {
        "repetition_penalty": lambda: RepetitionPenaltyLogitsProcessor(value, prompt_ignore_length=starts),
        "no_repeat_ngram_size": lambda: NoRepeatNGramLogitsProcessor(value),
        "logit_bias": lambda: SequenceBiasLogitsProcessor([[[id], bias] for id, bias in value.items()]),
    }[name]()
    expected = process(ids, torch.from_numpy(logits))[:, :-1]
    for levels, actual in zip(("v2-v1", "v3-v1"), by_level(logits, **parameters), strict=True):
        parity(
            component=f"penalties, {kind} logits",
            quantity=name,
            levels=levels,
            actual=actual[:, :-1],
            expected=expected,
            tolerance=0.0,
        )


def test_all_together_stand_in_the_library_s_order(parity: ParityRecorder) -> None:
    """The list that `model.generate` itself builds; a bias that changes a logit's sign shows which penalty came first."""
    library, _, _ = trio("gpt2")
    ids, _ = padded(SEQUENCES)
    mask = (ids != V - 1).long()
    parameters = {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2}
    config = GenerationConfig(
        sequence_bias=[[[id], bias] for id, bias in BIAS.items()], do_sample=False, **parameters
    )
    processors = library.library._get_logits_processor(
        config, input_ids_seq_length=ids.shape[1], model_kwargs={"attention_mask": mask}
    )
    assert len(processors) == 3
    logits = logits_of("different")
    logits[:, 3], logits[:, 7] = -1.0, 0.5
    for levels, actual in zip(
        ("v2-v1", "v3-v1"), by_level(logits, logit_bias=BIAS, **parameters), strict=True
    ):
        parity(
            component="penalties",
            quantity="all together",
            levels=levels,
            actual=actual[:, :-1],
            expected=processors(ids, torch.from_numpy(logits))[:, :-1],
            tolerance=0.0,
        )


def test_presence_and_frequency_count_generated_tokens_only() -> None:
    """OpenAI's formula: z - presence * (c > 0) - frequency * c. The prompt 5, 5 counts nothing; 6 was generated twice, 7 once."""
    logits = np.full((1, 8), 2.0)
    sampling = SamplingParameters(presence_penalty=0.5, frequency_penalty=0.25)
    arguments = [[5, 5, 6, 7, 6]], [2], sampling
    wanted = [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0 - 0.5 - 2 * 0.25, 2.0 - 0.5 - 0.25]
    assert v2.apply_penalties(torch.from_numpy(logits), *arguments).tolist() == [wanted]
    assert v3.apply_penalties(logits, *arguments).tolist() == [wanted]


def test_the_repetition_penalty_comes_before_the_frequency_penalty() -> None:
    """As in vLLM: 2 / 2 - 0.5 = 0.5; the other way round it would be 0.75."""
    sampling = SamplingParameters(repetition_penalty=2.0, frequency_penalty=0.5)
    assert v2.apply_penalties(torch.full((1, 2), 2.0), [[0]], [0], sampling).tolist() == [[0.5, 2.0]]


def test_penalties_leave_the_logits_that_they_were_given_alone() -> None:
    """A decoder hands out its buffer."""
    logits = logits_of("different")
    before = logits.copy()
    by_level(
        logits, repetition_penalty=2.0, frequency_penalty=1.0, no_repeat_ngram_size=2, logit_bias={1: 1.0}
    )
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("level", [2, 3])
def test_a_row_without_a_token_left_is_one_line_unless_it_has_stopped(level: int) -> None:
    logits = np.array([[0.0, -np.inf], [-np.inf, -np.inf]])
    check = v3.check_allowed if level == 3 else lambda x, rows: v2.check_allowed(torch.from_numpy(x), rows)
    assert np.array_equal(check(logits, {0}), [[0.0, -np.inf], [0, 0]])
    with pytest.raises(UserError, match="forbid every token; allow some"):
        check(logits, {1})


@pytest.mark.parametrize("level", [2, 3])
def test_no_repeat_goes_on_for_the_others_when_a_row_has_stopped(level: int) -> None:
    """With 96 ids and none twice, a prompt of 90 has 6 tokens left; it stops, and the shorter one goes on."""
    generate, model = (generate_v2, generate_v3)[level - 2], trio("llama GQA")[level - 1]
    long, short = list(range(90)), [5]
    alone = generate(model, [short], max_new_tokens=12, no_repeat_ngram_size=1, eos_token_id=[])
    stop = generate(model, [long], max_new_tokens=6, no_repeat_ngram_size=1, eos_token_id=[])[0][-1]
    together = generate(model, [long, short], max_new_tokens=12, no_repeat_ngram_size=1, eos_token_id=[stop])
    assert together[0][-1] == stop
    assert together[1] == alone[0][: len(together[1])]
    assert len(together[1]) > 6
    model.train()
    with pytest.raises(UserError, match="forbid every token; allow some"):
        generate(model, [long, short], max_new_tokens=12, no_repeat_ngram_size=1, eos_token_id=[])
    assert model.training, "the mode is put back after an error, too"
    with pytest.raises(UserError, match="forbid every token; allow some"):
        generate(model, [long], max_new_tokens=12, no_repeat_ngram_size=1, num_beams=2, eos_token_id=[])


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2, "repetition_penalty": 1.1, "logit_bias": {5: 3.0, 40: float("-inf")}},
    ],
    ids=["repetition", "unigrams", "all"],
)
def test_greedy_ids_with_penalties_equal_those_of_the_library(
    parity: ParityRecorder, case: str, options: dict[str, Any]
) -> None:
    """A padded batch: prompt and generated tokens count, padding does not."""
    from tests.parity.test_generate import by_level as generate_by_level

    library, ours, arrays = generate_by_level(case, prompts(case), max_new_tokens=20, **options)
    plain, _, _ = generate_by_level(case, prompts(case), max_new_tokens=20)
    assert library != plain, "the penalties should change something"
    for levels, ids in (("v2-v1", ours), ("v3-v1", arrays)):
        parity(
            component="generate, penalties",
            quantity="greedy ids",
            levels=levels,
            actual=ids,
            expected=library,
            tolerance=0.0,
        )
