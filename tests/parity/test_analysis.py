"""Zipf's exponent: the same number at all three levels, and right where it is known."""

import math
from itertools import islice

import pytest

from shared_data.corpus.statistics import analyse
from shared_data.story_world import StoryWorld
from v1_quick.data_pipeline.analysis import statistics as v1
from v2_handwritten.data_pipeline.analysis import statistics as v2
from v3_numpy_deep.data_pipeline.analysis import statistics as v3

LEVELS = [v1, v2, v3]


def test_every_level_finds_the_same_exponent_in_a_corpus(parity) -> None:
    texts = [story.text for story in islice(StoryWorld().stories(0), 100)]
    exponents = [analyse(texts, level.zipf_exponent)["zipf_exponent"] for level in LEVELS]
    for levels, other in (("v1-v2", exponents[0]), ("v3-v2", exponents[2])):
        parity(
            component="statistics",
            quantity="Zipf exponent",
            levels=levels,
            actual=[other],
            expected=[exponents[1]],
            tolerance=1e-14,
        )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.7])
def test_a_perfect_power_law_gives_its_exponent(level, exponent: float) -> None:
    """The exercise of statistics.md."""
    frequencies = [round(1e12 * rank**-exponent) for rank in range(1, 2000)]
    assert math.isclose(level.zipf_exponent(frequencies), exponent, rel_tol=1e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_one_word_has_no_exponent(level) -> None:
    assert math.isnan(level.zipf_exponent([3]))
