"""The arguments of `generate`: what is meant is read, what cannot be meant is a `UserError` that says so."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from shared_data.errors import UserError
from shared_data.inference.arguments import check_sampling, end_ids, new_token_limits, prompt_ids
from shared_data.inference.sampling_parameters import SamplingParameters
from shared_data.seeds import check_seed

NAN = float("nan")


def test_prompts_are_lists_or_arrays_and_an_empty_one_begins_with_the_end() -> None:
    assert prompt_ids([[5, 6], [], (7,)], [3, 4], vocab_size=8) == [[5, 6], [3], [7]]
    assert prompt_ids([[]], [], vocab_size=8) == [[]]
    for array in (
        np.array([[5, 6], [7, 0]]),
        torch.tensor([[5, 6], [7, 0]]),
        [np.array([5, 6]), [np.int64(7), 0]],
    ):
        rows = prompt_ids(array, [], vocab_size=8)
        assert rows == [[5, 6], [7, 0]]
        assert {type(id) for row in rows for id in row} == {int}


def test_ids_that_end_a_sequence_are_one_several_or_none() -> None:
    for given, ids in ((None, []), ([], []), (0, [0]), (np.int64(3), [3]), ([3, 4], [3, 4]), ((3,), [3])):
        assert end_ids(given) == ids


def test_sampling_takes_every_number_that_can_be_computed_with() -> None:
    for temperature in (1e-30, 1e-8, 1, 0.7, np.float32(0.7), 1e30):
        check_sampling(temperature, top_k=np.int64(1), top_p=1)
    check_sampling(1.0, top_k=10**30, top_p=1e-320)
    for seed in (0, 2**32, np.int64(7)):
        check_seed(seed)


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "a text for the prompts": (lambda: prompt_ids("Once", [], 8), r"prompts are 'Once', not a list; pass a list of ids"),
    "no prompts": (lambda: prompt_ids(None, [], 8), r"prompts are None, not a list; pass"),  # type: ignore[arg-type]
    "a text for a prompt": (lambda: prompt_ids(["Once"], [], 8), r"a prompt is \['O'.*, not integers; pass .*encode"),  # type: ignore[list-item]
    "a flat list": (lambda: prompt_ids([5, 6], [], 8), r"a prompt is 5, not integers; pass a list of ids for each"),  # type: ignore[list-item]
    "a flat array": (lambda: prompt_ids(np.array([5]), [], 8), r"a prompt is .*5.*, not integers; pass"),
    "fractions": (lambda: prompt_ids([[1.5]], [], 8), r"a prompt is \[1.5\], not integers; pass"),  # type: ignore[list-item]
    "a negative id": (lambda: prompt_ids([[1], [2, -1]], [], 8), r"has the id -1, and .* 0 to 7; use the tokenizer"),
    "an id too large": (lambda: prompt_ids([[1], [8, 2]], [], 8), r"has the id 8, and .* 0 to 7; use the tokenizer"),
    "a text for the end": (lambda: end_ids("x"), r"eos_token_id is .*'x'.*, not integers; pass"),  # type: ignore[arg-type]
    "a list of texts for the end": (lambda: end_ids(["a"]), r"eos_token_id is \['a'\], not integers; pass"),  # type: ignore[list-item]
    "a fraction for the end": (lambda: end_ids(1.5), r"eos_token_id is 1.5, not integers; pass"),  # type: ignore[arg-type]
    "fewer than no new tokens": (lambda: new_token_limits([[1]], -1, 8), r"max_new_tokens is -1; choose"),
    "no new tokens": (lambda: new_token_limits([[1]], 0, 8), r"max_new_tokens is 0; choose"),
    "a fraction of new tokens": (lambda: new_token_limits([[1]], 1.5, 8), r"max_new_tokens is 1.5; choose"),  # type: ignore[arg-type]
    "negative temperature": (lambda: check_sampling(-1, None, None), r"temperature -1 is not from 1e-30 .*; choose"),
    "NaN for the temperature": (lambda: check_sampling(NAN, None, None), r"temperature nan is not from .*; choose"),
    "temperature 1e-320": (lambda: check_sampling(1e-320, None, None), r"temperature 1e-320 is not from .*; choose"),
    "temperature 1e300": (lambda: check_sampling(1e300, None, None), r"temperature 1e\+300 is not from .*; choose"),
    "text for the temperature": (lambda: check_sampling("x", None, None), r"temperature 'x' is not from"),  # type: ignore[arg-type]
    "a fraction for top_k": (lambda: check_sampling(1, 1.5, None), r"top_k 1.5 is no integer above 0; leave"),  # type: ignore[arg-type]
    "NaN for top_p": (lambda: check_sampling(1, None, NAN), r"top_p nan is not in \(0, 1\]; 0.95"),
    "a length penalty beyond floats": (lambda: SamplingParameters(num_beams=2, length_penalty=1e300), r"length_penalty 1e\+300 is not between -50 and 50; 1 is"),
    "a length penalty below": (lambda: SamplingParameters(num_beams=2, length_penalty=-2000), r"length_penalty -2000 is not between"),
    "text for the length penalty": (lambda: SamplingParameters(length_penalty="x"), r"length_penalty 'x' is not between"),  # type: ignore[arg-type]
    "beams beyond memory": (lambda: SamplingParameters(num_beams=100_000), r"num_beams 100000 is above 1,000.*; 4 is common"),
    "negative seed": (lambda: check_seed(-1), r"seed is -1; choose an integer from 0 to 4294967295"),
    "a seed of 77 bits": (lambda: check_seed(10**23), r"seed is 10{23}; choose an integer"),
    "no seed": (lambda: check_seed(None), r"seed is None; choose an integer"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_meant_is_a_user_error_with_its_remedy(name: str) -> None:
    mistake, says = MISTAKES[name]
    with pytest.raises(UserError, match=says):
        mistake()
