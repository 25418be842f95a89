"""A corpus of two lines in two scripts: what is counted, as in statistics.md."""

from shared_data.corpus.statistics import analyse, unit_of
from tests.worked import agrees
from v2_handwritten.data_pipeline.analysis.statistics import zipf_exponent

PAGE = "v2_handwritten/data_pipeline/analysis/statistics.md"


def test_words_and_characters_are_counted_together() -> None:
    counted = analyse(["The cat saw 宝玉.", "宝玉笑了。"], zipf_exponent)
    names = ("documents", "words", "characters", "distinct_words", "median_words")
    agrees(PAGE, "number", [[counted[name]] for name in names])
    assert counted["lengths"] == {4: 1, 5: 1}
    assert dict(list(counted["word_counts"].items())[:2]) == {"宝": 2, "玉": 2}
    assert unit_of(counted) == "characters"
