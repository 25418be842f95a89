"""What is in a corpus: how much, how long, which words, how much of it repeats.

One pass over the documents, in memory that does not grow with them. Theory: `v2_handwritten/data_pipeline/analysis/statistics.md`.
The exponent of Zipf's law is fitted by each level (`data_pipeline/analysis/statistics.py`).

    uv run python -c "from shared_data.corpus.statistics import *; \
from v2_handwritten.data_pipeline.analysis.statistics import zipf_exponent; print(analyse(['the cat saw the dog'], zipf_exponent))"
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from shared_data.cleaning.words import is_character, split_words

_MOST_WORDS = 300_000  # distinct words counted at a time; beyond, the rarest are forgotten


def analyse(texts: Iterable[str], zipf_exponent: Callable[[Sequence[int]], float]) -> dict[str, Any]:
    """Counts and ratios of a corpus.

    `lengths` maps a number of words to the documents of that length; `word_counts` maps words to occurrences, the
    commonest first. In scripts without spaces each character counts as a word, and `characters` says how many of the words are
    that. `compression_ratio` is bytes over bytes after zlib. `zipf_exponent` gets the word frequencies in
    falling order.
    """
    words: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    size = compressed_size = characters = 0
    compressor = zlib.compressobj()
    for text in texts:
        encoded = text.encode("utf-8")
        size += len(encoded)
        compressed_size += len(compressor.compress(encoded))
        found = split_words(text.lower())
        characters += sum(map(is_character, found))
        lengths[len(found)] += 1
        words.update(found)
        if len(words) > _MOST_WORDS:
            words = _without_the_rarest(words)
    compressed_size += len(compressor.flush())
    word_counts = dict(words.most_common())
    documents = lengths.total()
    return {
        "documents": documents,
        "bytes": size,
        "words": sum(length * count for length, count in lengths.items()),
        "characters": characters,
        "distinct_words": len(words),
        "median_words": median(lengths),
        "bytes_per_document": size / max(1, documents),
        "compression_ratio": size / compressed_size,
        "zipf_exponent": zipf_exponent(list(word_counts.values())),
        "lengths": dict(sorted(lengths.items())),
        "word_counts": word_counts,
    }


def unit_of(statistics: Mapping[str, Any]) -> str:
    """What most of the words of a corpus are: words, or characters of a script without spaces."""
    return "characters" if 2 * statistics["characters"] > statistics["words"] else "words"


def _without_the_rarest(words: Counter[str]) -> Counter[str]:
    """At least half of the entries less: those that occur no more often than the median word."""
    ordered = words.most_common()
    limit = ordered[len(ordered) // 2][1]
    return Counter({word: count for word, count in ordered if count > limit})


def median(lengths: Counter[int]) -> float:
    """The median of values that come as value: count; of an even number, the lower of the two in the middle."""
    middle = (lengths.total() + 1) // 2
    for value, count in sorted(lengths.items()):
        middle -= count
        if middle <= 0:
            return float(value)
    return 0.0
