"""What is in a corpus: the same numbers at all three levels, right on corpora whose statistics are known."""

import math
from collections import Counter
from itertools import islice

import pytest

from shared_data.plots import plot_histogram
from shared_data.story_world import StoryWorld
from v1_quick.data_pipeline.analysis import statistics as v1
from v2_handwritten.data_pipeline.analysis import statistics as v2
from v3_numpy_deep.data_pipeline.analysis import statistics as v3

LEVELS = [v1, v2, v3]


def test_every_level_finds_the_same_in_a_corpus(parity) -> None:
    texts = [story.text for story in islice(StoryWorld().stories(0), 100)] + ["Größe «é»", ""]
    results = [level.analyse(texts) for level in LEVELS]
    exponents = [result.pop("zipf_exponent") for result in results]
    for levels, other in (("v1-v2", exponents[0]), ("v3-v2", exponents[2])):
        parity(
            component="statistics",
            quantity="Zipf exponent",
            levels=levels,
            actual=[other],
            expected=[exponents[1]],
            tolerance=1e-14,
        )
    assert results[0] == results[1] == results[2]
    found = results[1]
    assert found["documents"] == 102
    assert found["bytes"] == sum(len(text.encode()) for text in texts)
    assert found["words"] == sum(length * count for length, count in found["lengths"].items())
    assert found["lengths"][0] == 1
    assert 2 < found["compression_ratio"] < 8


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.7])
def test_a_perfect_power_law_gives_its_exponent(level, exponent: float) -> None:
    """The exercise of statistics.md."""
    frequencies = [round(1e12 * rank**-exponent) for rank in range(1, 2000)]
    assert math.isclose(level.zipf_exponent(frequencies), exponent, rel_tol=1e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_small_corpora_have_statistics_too(level) -> None:
    assert math.isnan(level.zipf_exponent([3]))
    assert level.median(Counter({5: 1, 7: 1, 100: 2})) == 7
    assert level.median(Counter()) == 0
    assert level.analyse([])["documents"] == 0


@pytest.mark.parametrize("level", [v2, v3])
def test_forgetting_the_rarest_words_bounds_memory_and_keeps_the_common_ones(level, monkeypatch) -> None:
    monkeypatch.setattr(level, "_MOST_WORDS", 50)
    texts = (f"the cat and w{number}" for number in range(1000))
    counts = level.analyse(texts)["word_counts"]
    assert len(counts) <= 51
    assert [counts[word] for word in ("the", "cat", "and")] == [1000, 1000, 1000]


def test_a_histogram_of_counts_is_drawn_without_a_list_of_values(tmp_path) -> None:
    plot_histogram({3: 10, 700: 100_000_000}, tmp_path / "lengths.svg")
    assert "<svg" in (tmp_path / "lengths.svg").read_text()
