"""Encoding pre-tokens: apply the merges in the order in which they were learned.

Start from bytes (or characters, as the file says); among all neighbouring pairs take the one with the lowest rank (the
earliest merge), leftmost on a tie, join it, and look again until no pair is in the list (Sennrich et al. 2016, algorithm 1,
run forwards). It is not "longest token first", and two words with the same beginning may be cut differently.

Two versions, tested equal:
- `merge_word` looks at all pairs after each merge: n merges of n pairs;
- `merge_words` puts all words into one flat array; in each round every word takes its next merge, all at the same time. A long
  word (a megabyte of one letter is one pre-token!) would take a round a letter: there, two arrays link every symbol to its
  neighbours, and rank by rank all places where that rank waits are merged in one step.

Level 1 leaves this to `tokenizers`; level 2 merges word by word, the long ones with a heap of ranks.

    uv run python -c "from v3_numpy_deep.data_pipeline.tokenizer.bpe_encode import *; print(merge_word([0, 0, 1], Merges([(0, 0), (2, 1)], [2, 3])))"
"""

from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np
from jaxtyping import Int64

Pair = tuple[int, int]

_LONG_WORD = 100  # bytes from which places are tracked instead of looked for
_SEPARATOR = -1  # stands between words: no pair holds it, so nothing merges across
_ABSORBED = -2  # the right symbol of a merge, which its left neighbour has taken over


class Merges:
    """The learned merges: the rank of each pair (its place in the list), and the id that each rank makes."""

    def __init__(self, pairs: list[Pair], new_ids: list[int]) -> None:
        self.pairs = pairs
        self.new_ids = np.asarray(new_ids, np.int64)
        # A pair that is listed twice keeps its last place, as in `tokenizers`.
        rank = {pair: rank for rank, pair in enumerate(pairs)}
        left, right = np.asarray(list(rank), np.int64).reshape(-1, 2).T
        ranks = np.fromiter(rank.values(), np.int64, len(rank))
        order = np.argsort(left << 32 | right)
        self._keys, self._ranks = (left << 32 | right)[order], ranks[order]
        self.in_order = self._find_ranks_in_order()

    def _rank_of(
        self, left: Int64[np.ndarray, " N"], right: Int64[np.ndarray, " N"], otherwise: int = -1
    ) -> Int64[np.ndarray, " N"]:
        """The rank of each pair, and `otherwise` where a pair never merges."""
        if not len(self._keys):
            return np.full(len(left), otherwise)
        key = left << 32 | right
        place = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
        # A separator or an absorbed symbol is negative, and so is its key: never found.
        return np.where(self._keys[place] == key, self._ranks[place], otherwise)

    def _find_ranks_in_order(self) -> np.ndarray:
        """Whether all pairs with the token that a rank makes come after that rank.

        So it is in the files of trainers: a token is made by one merge, or, as in Llama-3's, by several in a row. Where a file
        makes "aaa" of "aa" + "a" early and of "a" + "aa" late, the late merge forms pairs that come before it, and then
        its occurrences must be merged one at a time.
        """
        size = 1 + max(self.new_ids.max(initial=0), *(max(pair) for pair in self.pairs), 0)
        earliest = np.full(size, len(self.pairs))
        for symbols in np.asarray(self.pairs, np.int64).reshape(-1, 2).T:
            np.minimum.at(earliest, symbols, np.arange(len(symbols)))
        return earliest[self.new_ids] > np.arange(len(self.pairs))


def merge_word(ids: Sequence[int], merges: Merges) -> list[int]:
    """Merge the symbols of a word; rereads all pairs after each merge.

    >>> a, b, ab, aab = 0, 1, 2, 3
    >>> merge_word([a, a, b], Merges([(a, b), (a, ab)], [ab, aab]))
    [3]
    """
    symbols = np.asarray(ids, np.int64)
    while len(symbols) > 1:
        ranks = merges._rank_of(symbols[:-1], symbols[1:], otherwise=len(merges.pairs))
        position = ranks.argmin()  # the leftmost of the lowest
        if ranks[position] == len(merges.pairs):
            break
        symbols[position] = merges.new_ids[ranks[position]]
        symbols = np.delete(symbols, position + 1)
    return symbols.tolist()


def merge_words(words: Sequence[Sequence[int]], merges: Merges) -> list[list[int]]:
    """The same result for many words, of any length."""
    merged: list[list[int]] = [list(word) for word in words]
    short = [place for place, word in enumerate(merged) if 1 < len(word) < _LONG_WORD]
    _merge_together(merged, short, merges)
    for place, word in enumerate(merged):
        if len(word) >= _LONG_WORD:
            merged[place] = _merge_long(word, merges)
    return merged


def _merge_together(words: list[list[int]], places: list[int], merges: Merges) -> None:
    """Merge the words at `places`, in place: in each round every word takes its next merge, all at the same time."""
    unfinished = np.asarray(places, np.int64)
    ids = np.asarray([id for place in places for id in words[place]], np.int64)
    lengths = np.asarray([len(words[place]) for place in places], np.int64)
    never = len(merges.pairs)
    while len(unfinished):
        starts = np.cumsum(lengths) - lengths
        ranks = np.full(len(ids), never)
        ranks[:-1] = merges._rank_of(ids[:-1], ids[1:], otherwise=never)
        ranks[starts + lengths - 1] = never  # no pair begins at the last symbol of a word
        # Rank and place as one number: its minimum in each word is the lowest rank, and of those the leftmost.
        lowest = np.minimum.reduceat(ranks << 32 | np.arange(len(ids)), starts)
        goes_on = lowest >> 32 < never
        for word in np.flatnonzero(~goes_on).tolist():
            words[unfinished[word]] = ids[starts[word] : starts[word] + lengths[word]].tolist()
        place = lowest[goes_on] & 0xFFFFFFFF
        ids[place] = merges.new_ids[lowest[goes_on] >> 32]
        stays = np.repeat(goes_on, lengths)
        stays[place + 1] = False
        ids, lengths, unfinished = ids[stays], lengths[goes_on] - 1, unfinished[goes_on]


def _merge_long(word: list[int], merges: Merges) -> list[int]:
    """Merge one long word: rank by rank, all places where a rank waits at the same time."""
    ids = np.asarray([*word, _SEPARATOR], np.int64)
    # Links in a circle: the separator ends the word and precedes it.
    following, preceding = np.roll(np.arange(len(ids)), -1), np.roll(np.arange(len(ids)), 1)
    waiting: dict[int, list[np.ndarray]] = {}  # rank -> places of the left symbol, some of them out of date
    ranks = _wait(waiting, np.arange(len(ids) - 1), merges._rank_of(ids[:-1], ids[1:]))
    while ranks:
        rank = heappop(ranks)
        a, b = merges.pairs[rank]
        left = np.unique(np.concatenate(waiting.pop(rank)))
        left = left[ids[left] == a]  # the left symbol may have been merged meanwhile …
        left = left[ids[following[left]] == b]  # … and so may the right one
        if merges.in_order[rank]:
            left = _without_overlap(left, following)
        elif len(left) > 1:
            waiting[rank] = [left[1:]]
            heappush(ranks, rank)
            left = left[:1]
        ids[following[left]] = _ABSORBED
        ids[left] = merges.new_ids[rank]
        following[left] = following[following[left]]
        preceding[following[left]] = left
        places = np.concatenate([preceding[left], left])
        for new_rank in _wait(waiting, places, merges._rank_of(ids[places], ids[following[places]])):
            heappush(ranks, new_rank)
    return ids[ids >= 0].tolist()


def _without_overlap(left: Int64[np.ndarray, " N"], following: Int64[np.ndarray, " M"]) -> np.ndarray:
    """Of occurrences that share a symbol ("aaa" holds "aa" twice), each second one, from the left: what a merge joins.

    `left` are the places of left symbols in ascending order.
    """
    if len(left) < 2:
        return left
    starts_chain = np.ones(len(left), bool)
    starts_chain[1:] = following[left[:-1]] != left[1:]
    index = np.arange(len(left))
    place_in_chain = index - np.maximum.accumulate(np.where(starts_chain, index, 0))
    return left[place_in_chain % 2 == 0]


def _wait(waiting: dict[int, list[np.ndarray]], places: np.ndarray, ranks: np.ndarray) -> list[int]:
    """Note each place under its rank; returns the ranks that were not waiting before, in ascending order."""
    merging = ranks >= 0
    places, ranks = places[merging], ranks[merging]
    order = np.argsort(ranks, kind="stable")
    places, ranks = places[order], ranks[order]
    first = np.flatnonzero(np.diff(ranks, prepend=-1))
    new_ranks = []
    for rank, group in zip(ranks[first].tolist(), np.split(places, first[1:]), strict=False):
        if rank not in waiting:
            waiting[rank] = []
            new_ranks.append(rank)
        waiting[rank].append(group)
    return new_ranks
