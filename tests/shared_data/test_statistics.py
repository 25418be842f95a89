"""What is in a corpus: counts that can be checked by hand, in memory that does not grow."""

from collections import Counter

from shared_data.corpus import statistics
from shared_data.corpus.statistics import analyse, median
from shared_data.plots import plot_histogram


def test_a_corpus_of_three_documents_is_counted() -> None:
    found = analyse(["The cat saw the dog.", "«Größe», Tom's the", ""], zipf_exponent=len)
    assert found["documents"] == 3
    assert found["bytes"] == len("The cat saw the dog.«Größe», Tom's the".encode())
    assert found["words"] == 8
    assert found["lengths"] == {0: 1, 3: 1, 5: 1}
    assert found["median_words"] == 3
    assert next(iter(found["word_counts"].items())) == ("the", 3)
    assert found["zipf_exponent"] == found["distinct_words"] == 6, "it gets the frequencies"
    assert analyse(["the cat saw the dog " * 1000], len)["compression_ratio"] > 50


def test_the_median_of_counted_values() -> None:
    assert median(Counter({5: 1, 7: 1, 100: 2})) == 7
    assert median(Counter()) == 0
    assert analyse([], len)["documents"] == 0


def test_forgetting_the_rarest_words_bounds_memory_and_keeps_the_common_ones(monkeypatch) -> None:
    monkeypatch.setattr(statistics, "_MOST_WORDS", 50)
    texts = (f"the cat and w{number}" for number in range(1000))
    counts = analyse(texts, len)["word_counts"]
    assert len(counts) <= 51
    assert [counts[word] for word in ("the", "cat", "and")] == [1000, 1000, 1000]


def test_a_histogram_of_counts_is_drawn_without_a_list_of_values(tmp_path) -> None:
    plot_histogram({3: 10, 700: 100_000_000}, tmp_path / "lengths.svg")
    assert "<svg" in (tmp_path / "lengths.svg").read_text()
