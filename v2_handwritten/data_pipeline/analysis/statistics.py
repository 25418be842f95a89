"""Zipf's law in a corpus.

    f(r) ≈ C · r^(-s)    the word of rank r occurs about C / r^s times; s ≈ 1 in natural language (Zipf 1949)

Theory: `statistics.md`. The counts come from `shared_data/corpus/statistics.py`. Level 1 calls `numpy.polyfit`; level 2 solves
the regression term by term; level 3 in arrays.

    uv run python -c "from v2_handwritten.data_pipeline.analysis.statistics import zipf_exponent; print(zipf_exponent([60, 30, 20, 15]))"
"""

import math
from collections.abc import Sequence


def zipf_exponent(frequencies: Sequence[int]) -> float:
    """The slope s of Zipf's law from frequencies in falling order, by weighted least squares on log f = log C - s log r.

    Rank r weighs 1/r, so that each factor of ten in rank counts the same; unweighted, the long tail of words that occur
    once would decide alone. NaN with fewer than two words.
    """
    if len(frequencies) < 2:
        return math.nan
    weights = x_mean = y_mean = 0.0
    for rank, frequency in enumerate(frequencies, start=1):
        weights += 1 / rank
        x_mean += math.log(rank) / rank
        y_mean += math.log(frequency) / rank
    x_mean, y_mean = x_mean / weights, y_mean / weights
    covariance = variance = 0.0
    for rank, frequency in enumerate(frequencies, start=1):
        x = math.log(rank) - x_mean
        covariance += x * (math.log(frequency) - y_mean) / rank
        variance += x * x / rank
    return -covariance / variance
