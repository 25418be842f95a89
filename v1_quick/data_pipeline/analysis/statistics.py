"""What is in a corpus, with `collections.Counter`, `zlib` and `numpy.polyfit`.

Theory: `v2_handwritten/data_pipeline/analysis/statistics.md`.
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

_WORD = re.compile(r"\w+(?:['’]\w+)*")


def analyse(texts: Iterable[str]) -> dict[str, Any]:
    """Counts and ratios of a corpus.

    `lengths` maps a number of words to the documents of that length; `word_counts` maps words to occurrences, the
    commonest first; `compression_ratio` is bytes over bytes after zlib.
    """
    words: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    size = compressed_size = 0
    compressor = zlib.compressobj()
    for text in texts:
        encoded = text.encode("utf-8")
        size += len(encoded)
        compressed_size += len(compressor.compress(encoded))
        found = _WORD.findall(text.lower())
        lengths[len(found)] += 1
        words.update(found)
    compressed_size += len(compressor.flush())
    documents = lengths.total()
    return {
        "documents": documents,
        "bytes": size,
        "words": sum(length * count for length, count in lengths.items()),
        "distinct_words": len(words),
        "median_words": median(lengths),
        "bytes_per_document": size / max(1, documents),
        "compression_ratio": size / compressed_size,
        "zipf_exponent": zipf_exponent([count for _, count in words.most_common()]),
        "lengths": dict(sorted(lengths.items())),
        "word_counts": dict(words.most_common()),
    }


def median(lengths: Counter[int]) -> float:
    """The median of values given as value: count; of an even number, the lower of the two in the middle."""
    if not lengths:
        return 0.0
    return float(np.quantile(sorted(lengths.elements()), 0.5, method="inverted_cdf"))


def zipf_exponent(frequencies: Sequence[int]) -> float:
    """The slope s of Zipf's law f = C · r^(-s), by least squares on logarithms where rank r weighs 1/r."""
    if len(frequencies) < 2:
        return float("nan")
    ranks = np.arange(1, len(frequencies) + 1)
    # polyfit squares its weights together with the residuals, hence the root.
    slope, _ = np.polyfit(np.log(ranks), np.log(frequencies), 1, w=np.sqrt(1 / ranks))
    return -float(slope)
