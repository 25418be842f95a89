"""Regular expressions from elsewhere that would take minutes or gigabytes: `(a|a)*b` doubles its work with each letter, `(a{9999}){9999}` is written out.

`regex` has a time limit for matching, which `re` has not; how large a pattern becomes it does not ask.

    uv run python -c "from shared_data.slow_patterns import *; print(is_slow('(a|a)*[bc]'), is_slow('a+[bc]'))"
"""

import math
import re

import regex

LONGEST_PATTERN, MOST_REPETITIONS = 10_000, 10_000
PROBE_SECONDS = 0.2  # patterns in use take microseconds
_PROBES = [f"{character * 40}\0" for character in "aA1 .\n'é"] + [f"{'a b' * 20}\0", f"{'a1' * 20}\0"]


def is_large(pattern: str) -> bool:
    """Whether a pattern is long, or repeats its parts more often than any in use."""
    counts = [int(count[:9]) for count in re.findall(r"\d+(?=,?\})", pattern[:LONGEST_PATTERN])]
    return len(pattern) > LONGEST_PATTERN or math.prod(max(count, 1) for count in counts) > MOST_REPETITIONS


def is_slow(pattern: str, flags: int = 0) -> bool:
    """Whether a pattern is large, or takes long to find its matches in short texts of one kind of character."""
    if is_large(pattern):
        return True
    compiled = regex.compile(pattern, flags)
    try:
        for probe in _PROBES:
            compiled.findall(probe, timeout=PROBE_SECONDS)
    except TimeoutError:
        return True
    return False
