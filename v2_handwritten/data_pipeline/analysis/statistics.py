"""What is in a corpus: how much, how long, which words, how much of it repeats.

    Zipf's law   f(r) ≈ C · r^(-s)    the word of rank r occurs about C / r^s times; s ≈ 1 in natural language (Zipf 1949)

One pass over the documents, in memory that does not grow with them. Theory: `statistics.md`. Level 1 takes `Counter` and
`numpy.polyfit`; level 2 counts and solves the regression by hand; level 3 does the regression in arrays.

    python -c "from v2_handwritten.data_pipeline.analysis.statistics import analyse; print(analyse(['the cat saw the dog']))"
"""

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_MOST_WORDS = 300_000  # distinct words counted at a time; beyond, the rarest are forgotten


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
        if len(words) > _MOST_WORDS:
            words = _without_the_rarest(words)
    compressed_size += len(compressor.flush())
    documents = sum(lengths.values())
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


def _without_the_rarest(words: Counter[str]) -> Counter[str]:
    """At least half of the entries less: those that occur no more often than the median word."""
    ordered = words.most_common()
    limit = ordered[len(ordered) // 2][1]
    return Counter({word: count for word, count in ordered if count > limit})


def median(lengths: Counter[int]) -> float:
    """The median of values given as value: count; of an even number, the lower of the two in the middle."""
    middle = (sum(lengths.values()) + 1) // 2
    for value, count in sorted(lengths.items()):
        middle -= count
        if middle <= 0:
            return float(value)
    return 0.0


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
