"""Zipf's law in a corpus, fitted in arrays.

    f(r) ≈ C · r^(-s)    the word of rank r occurs about C / r^s times; s ≈ 1 in natural language (Zipf 1949)

Theory: `v2_handwritten/data_pipeline/analysis/statistics.md`. The counts come from `shared_data/corpus/statistics.py`.

    uv run python -c "from v3_numpy_deep.data_pipeline.analysis.statistics import zipf_exponent; print(zipf_exponent([60, 30, 20, 15]))"
"""

import math
from collections.abc import Sequence

import numpy as np


def zipf_exponent(frequencies: Sequence[int]) -> float:
    """The slope s of Zipf's law from frequencies in falling order, by weighted least squares on log f = log C - s log r.

    Rank r weighs 1/r, so that each factor of ten in rank counts the same; unweighted, the long tail of words that occur
    once would decide alone. NaN with fewer than two words.
    """
    if len(frequencies) < 2:
        return math.nan
    ranks = np.arange(1, len(frequencies) + 1)
    x, y, weights = np.log(ranks), np.log(np.asarray(frequencies)), 1 / ranks
    x -= np.average(x, weights=weights)
    y -= np.average(y, weights=weights)
    return -float((weights * x * y).sum() / (weights * x * x).sum())
