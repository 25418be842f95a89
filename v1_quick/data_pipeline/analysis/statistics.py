"""Zipf's law in a corpus, fitted with `numpy.polyfit`.

Theory: `v2_handwritten/data_pipeline/analysis/statistics.md`. The counts come from `shared_data/corpus/statistics.py`.

    uv run python -c "from v1_quick.data_pipeline.analysis.statistics import zipf_exponent; print(zipf_exponent([60, 30, 20, 15]))"
"""

import math
from collections.abc import Sequence

import numpy as np


def zipf_exponent(frequencies: Sequence[int]) -> float:
    """The slope s of f = C · r^(-s), by least squares on logarithms where rank r weighs 1/r; NaN below two words."""
    if len(frequencies) < 2:
        return math.nan
    ranks = np.arange(1, len(frequencies) + 1)
    # polyfit squares its weights together with the residuals, hence the root.
    slope, _ = np.polyfit(np.log(ranks), np.log(frequencies), 1, w=np.sqrt(1 / ranks))
    return -float(slope)
