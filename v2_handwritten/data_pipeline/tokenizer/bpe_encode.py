"""Encoding pre-tokens: apply the merges in the order in which they were learned.

Start from bytes (or characters, as the file says); among all neighbouring pairs take the one with the lowest rank (the
earliest merge), leftmost on a tie, join it, and look again until no pair is in the list (Sennrich et al. 2016, algorithm 1,
run forwards). It is not "longest token first", and two words with the same beginning may be cut differently.

Two versions, tested equal:
- `merge_word` looks at all pairs after each merge: n merges of n pairs, and still the fastest for words of a few bytes;
- `merge_words` hands it the short words; for the long ones it keeps, for each rank, the positions where it waits, and a linked
  list of the symbols: n log n, so that a megabyte of one letter (one pre-token!) takes seconds instead of days.

Level 1 leaves this to `tokenizers`; level 3 merges all words at once in one flat array.

    uv run python -c "from v2_handwritten.data_pipeline.tokenizer.bpe_encode import *; print(merge_word([0, 0, 1], Merges([(0, 0), (2, 1)], [2, 3])))"
"""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise

_LONG_WORD = (
    100  # bytes from which `_merge_long` is the faster one (measured: they break even between 80 and 120)
)

Pair = tuple[int, int]


class Merges:
    """The learned merges: the rank of each pair (its place in the list), and the id that each rank makes."""

    def __init__(self, pairs: list[Pair], new_ids: list[int]) -> None:
        # A pair that is listed twice keeps its last place, as in `tokenizers`.
        self.rank = {pair: rank for rank, pair in enumerate(pairs)}
        self.pairs = pairs
        self.new_ids = new_ids


def merge_word(ids: Sequence[int], merges: Merges) -> list[int]:
    """Merge the symbols of a word; rereads all pairs after each merge.

    >>> a, b, ab, aab = 0, 1, 2, 3
    >>> merge_word([a, a, b], Merges([(a, b), (a, ab)], [ab, aab]))
    [3]
    """
    ids = list(ids)
    rank_of, none = merges.rank.get, len(merges.pairs)
    while len(ids) > 1:
        ranks = [rank_of(pair, none) for pair in pairwise(ids)]
        lowest = min(ranks)
        if lowest == none:
            break
        position = ranks.index(lowest)  # the leftmost
        ids[position : position + 2] = [merges.new_ids[lowest]]
    return ids


def merge_words(words: Sequence[Sequence[int]], merges: Merges) -> list[list[int]]:
    """The same result for many words, of any length."""
    return [
        merge_word(word, merges) if len(word) < _LONG_WORD else _merge_long(word, merges) for word in words
    ]


def _merge_long(ids: Sequence[int], merges: Merges) -> list[int]:
    """The same result for one word, in n log n: a heap of ranks, and for each rank a heap of the places where it waits."""
    ids = list(ids)
    end = len(ids)
    following = list(range(1, end + 1))  # a linked list: joining two symbols moves nothing
    preceding = list(range(-1, end - 1))
    waiting: dict[int, list[int]] = {}  # rank -> places of the left symbol, some of them out of date
    for place, pair in enumerate(pairwise(ids)):
        if (rank := merges.rank.get(pair)) is not None:
            waiting.setdefault(rank, []).append(place)
    ranks = list(waiting)
    heapify(ranks)
    while ranks:
        rank = ranks[0]
        if not waiting[rank]:
            del waiting[heappop(ranks)]
            continue
        left = heappop(waiting[rank])
        right = following[left]
        if right == end or (ids[left], ids[right]) != merges.pairs[rank]:
            continue  # one of the two was merged meanwhile
        ids[left], ids[right] = merges.new_ids[rank], -1
        following[left] = after = following[right]
        if after != end:
            preceding[after] = left
        for first, second in ((preceding[left], left), (left, after)):  # the two new pairs
            if first < 0 or second == end:
                continue
            if (new_rank := merges.rank.get((ids[first], ids[second]))) is not None:
                if new_rank not in waiting:
                    waiting[new_rank] = []
                    heappush(ranks, new_rank)
                heappush(waiting[new_rank], first)
    return [symbol for symbol in ids if symbol >= 0]
