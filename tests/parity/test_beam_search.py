"""Beam search finds transformers' sequences with transformers' scores, whatever ends them; the cache changes nothing."""

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared_data.errors import UserError
from shared_data.inference.beams import Beams
from shared_data.inference.sampling_parameters import SamplingParameters
from shared_data.inference.stop_strings import StopCriteria
from tests.parity.family_cases import batch, saved
from tests.parity.inference_cases import prompts, trio
from tests.parity.recorder import ParityRecorder
from tests.parity.test_generate import GENERATORS, by_level, models
from v2_handwritten.inference.beam_search import beam_search
from v2_handwritten.inference.generate import generate
from v2_handwritten.models.checkpoint import load_model
from v3_numpy_deep.inference.beam_search import beam_search as beam_search3
from v3_numpy_deep.models.checkpoint import load_model as load_model3

NEW = 8


def library_beams(
    library: Any, prompt: list[int], stop_ids: list[int], **options: Any
) -> tuple[list[int], float]:
    """`model.generate` itself: prompt and new ids of the best sequence, and its score."""
    output = library.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=stop_ids or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    return output.sequences[0].tolist(), float(output.sequences_scores[0])


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_ids_and_scores_equal_those_of_the_library(
    parity: ParityRecorder, case: str, early_stopping: bool | str
) -> None:
    """Prompts whose beams end early, with end ids that the model likes to write; length penalties that favour short and long ones."""
    library, ours, arrays = trio(case)
    found: dict[str, list[Any]] = {"v1": [], "v2": [], "v3": []}
    ended = 0
    for seed, length_penalty in product(range(3), (-1.0, 1.0, 3.0)):
        prompt = np.random.default_rng(seed).integers(4, 96, 1 + 3 * seed).tolist()
        (likely,) = generate(ours, [prompt], max_new_tokens=8, temperature=0.7, seed=seed, eos_token_id=[])
        stop_ids = sorted(set(likely))[seed:]
        options = {"num_beams": 2 + seed, "length_penalty": length_penalty, "early_stopping": early_stopping}
        with torch.inference_mode():
            found["v1"].append(library_beams(library.library, prompt, stop_ids, **options))
        for level, search, model in (("v2", beam_search, ours), ("v3", beam_search3, arrays)):
            best = search(
                model, prompt, SamplingParameters(**options), max_new_tokens=NEW, stop=StopCriteria(stop_ids)
            )
            found[level].append((best.ids, best.score))
        ended += len(best.ids) < len(prompt) + NEW
    assert ended >= 2, "some should end before the limit"
    ids, scores = ({level: [pair[i] for pair in pairs] for level, pairs in found.items()} for i in (0, 1))
    assert ids["v1"] == ids["v2"] == ids["v3"]
    for a, b, tolerance in (("v2", "v1", 2e-6), ("v3", "v1", 2e-6), ("v2", "v3", 5e-15)):
        parity(
            component="beam search",
            quantity="scores",
            levels=f"{a}-{b}",
            actual=np.array(scores[a]),
            expected=np.array(scores[b]),
            tolerance=tolerance,
        )


def test_one_wide_beam_finds_the_most_probable_sequence() -> None:
    """As many beams as there are beginnings: nothing is lost. Greedy decoding does lose it."""
    _, ours, _ = trio("gpt2")
    prompt, V = prompts("gpt2")[0], 96
    sampling = SamplingParameters(num_beams=V, length_penalty=0.0)
    best = beam_search(ours, prompt, sampling, max_new_tokens=2)
    with torch.inference_mode():
        first = ours(torch.tensor([prompt]))[0, -1].log_softmax(-1)
        second = ours(torch.tensor([[*prompt, id] for id in range(V)]))[:, -1].log_softmax(-1)
    totals = first[:, None] + second
    assert best.score == pytest.approx(float(totals.max()), abs=1e-12)
    assert best.ids[-2:] == list(divmod(int(totals.argmax()), V))


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_a_batch_with_penalties_equals_the_library_s_at_every_level(
    parity: ParityRecorder, case: str
) -> None:
    """Prompts of different lengths; penalties change log-probabilities here; ends inside."""
    stop_ids = [11, 30, 52, 77]
    options: dict[str, Any] = {"num_beams": 4, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
    options |= {"max_new_tokens": 12, "eos_token_id": stop_ids}
    library, ours, arrays = by_level(case, prompts(case, (5, 1, 9, 2, 7)), **options)
    assert {ids[-1] in stop_ids for ids in library} == {True, False}, "some end, some do not"
    for levels, ids in (("v2-v1", ours), ("v3-v1", arrays)):
        assert list(map(len, ids)) == list(map(len, library))
        parity(
            component="beam search, a padded batch",
            quantity="ids",
            levels=levels,
            actual=[id for row in ids for id in row],
            expected=[id for row in library for id in row],
            tolerance=0.0,
        )


@pytest.mark.parametrize("case", ["llama, dynamic rope", "deepseek_v3"])
def test_beams_with_a_cache_are_those_without(tmp_path: Path, case: str) -> None:
    """Also of models that are not decoded by the decoder: their cache is reordered, too."""
    saved(case, tmp_path)
    prompt, sampling = batch()[0][0, :5].tolist(), SamplingParameters(num_beams=3)
    for search, model in (
        (beam_search, load_model(tmp_path).double()),
        (beam_search3, load_model3(tmp_path).to(np.float64)),
    ):
        cached, recomputed = (
            search(model, prompt, sampling, max_new_tokens=8, use_cache=use_cache)
            for use_cache in (True, False)
        )
        assert cached.ids == recomputed.ids
        assert cached.score == pytest.approx(recomputed.score, abs=1e-10)


def test_beams_change_places_in_the_cache() -> None:
    """Here some beam continues another's beginning, so that a search with a cache that stays as it is finds something else."""
    _, ours, _ = trio("llama GQA")
    prompt, sampling = prompts("llama GQA")[0], SamplingParameters(num_beams=4)
    parents: list[list[int]] = []

    class Watched(Beams):
        def advance(self, *arguments: Any) -> None:
            super().advance(*arguments)
            parents.append(self.parents)

    module = __import__(beam_search.__module__, fromlist=["Beams"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Beams", Watched)
        right = beam_search(ours, prompt, sampling, max_new_tokens=12)
        patch.setattr("v2_handwritten.inference.kv_cache.KVCache.reorder", lambda *_: None)
        wrong = beam_search(ours, prompt, sampling, max_new_tokens=12)
    assert any(row != [0, 1, 2, 3] for row in parents[1:])
    assert right.score != pytest.approx(wrong.score, abs=1e-3)


def test_more_beams_find_no_less_probable_sequences_here() -> None:
    """Not a theorem, but so on this model; one beam would be greedy decoding."""
    _, ours, _ = trio("gpt2")
    (greedy,) = by_level("gpt2", [prompts("gpt2")[0]], max_new_tokens=NEW)[1]
    scores = []
    for num_beams in (1, 2, 4, 16):
        sampling = SamplingParameters(num_beams=num_beams, length_penalty=0.0)
        best = beam_search(ours, prompts("gpt2")[0], sampling, max_new_tokens=NEW)
        scores.append(best.score)
        if num_beams == 1:
            assert best.ids[-NEW:] == greedy
    assert all(
        a <= b + 1e-9 for a, b in pairwise(scores)
    )  # the same sequence, added up in batches of other sizes
    assert scores[0] < scores[-1]


@pytest.mark.parametrize("level", [0, 1, 2])
def test_ids_of_a_beam_search_are_passed_on_at_its_end(level: int) -> None:
    received: list[list[int]] = [[], [], []]
    ids = GENERATORS[level](
        models("gpt2")[level],
        prompts("gpt2"),
        max_new_tokens=6,
        num_beams=2,
        on_token=lambda row, id: received[row].append(id),
    )
    assert received == ids


@pytest.mark.parametrize("level", [0, 1, 2])
def test_beams_that_would_draw_are_one_line(level: int) -> None:
    with pytest.raises(
        UserError, match=r"4 beams with temperature 0.7 would be beam sampling.*; set temperature"
    ):
        GENERATORS[level](models("gpt2")[level], [[5]], max_new_tokens=2, num_beams=4, temperature=0.7)
