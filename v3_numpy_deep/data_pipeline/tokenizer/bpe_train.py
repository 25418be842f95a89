"""Training byte-level BPE: join the most frequent pair of neighbours, again and again.

Sennrich, Haddow and Birch (2016), "Neural Machine Translation of Rare Words with Subword Units", section 3.2, on bytes
(Radford et al. 2019). The vocabulary begins with the special tokens and the 256 bytes; each merge adds one token until
`vocab_size` is reached or no pair is frequent enough. The theory page `v2_handwritten/data_pipeline/tokenizer/bpe_train.md`
has the derivation.

The array way of the algorithm that level 2 writes with strings:
1. Text is cut into pre-tokens and only the multiset of them is kept: ten megabytes of stories have a few thousand words.
2. All different words stand in one flat array of ids, a separator after each. Arrays `following` and `preceding` link each symbol
   to its neighbours, so that a merge writes two numbers and moves nothing; `weight` has how often its word occurs.
3. Pairs are counted by sorting: a pair is one 64-bit number, equal numbers come to stand together, and each group's weights add
   up. The same sort gives the places of each pair, so that a merge looks only there.
4. A heap of pairs, refreshed lazily: between its creation and its merge a pair's count only falls (new pairs hold the new
   token), so a stale entry at the top is put back with its true count, and a true one is the maximum.

Merges and ids equal those of `tokenizers`, ties included: of equally frequent pairs the one with the smaller ids goes first,
and bytes are numbered in the order of `byte_level.ALPHABET`. Level 1 calls its `BpeTrainer`.

    uv run python -c "from v3_numpy_deep.data_pipeline.tokenizer.bpe_train import train_bpe; print(train_bpe(['low low lower'], 260).encode('lowest'))"
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush

import numpy as np
from jaxtyping import Int64

from shared_data.progress import progress
from shared_data.tokenizer.byte_level import ALPHABET
from shared_data.tokenizer.tokenizer_file import new_config, new_definition
from shared_data.tokenizer.training import count_words, initial_vocab
from v3_numpy_deep.data_pipeline.tokenizer.bpe_encode import _ABSORBED, _SEPARATOR, _without_overlap
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    pattern: str = "gpt4",
    special_tokens: Sequence[str] = (),
    min_frequency: int = 2,
    show_progress: bool = False,
) -> Tokenizer:
    """Learn a tokenizer from texts, read once as they come.

    `vocab_size` counts the special tokens and the 256 bytes; fewer tokens come out where no pair is left that occurs at least
    `min_frequency` times. Raises `UserError` for a vocabulary too small or a corpus without text.
    """
    vocab = initial_vocab(vocab_size, special_tokens)
    words = count_words(texts, pattern)
    merges = learn_merges(words, vocab, vocab_size, min_frequency, show_progress)
    return Tokenizer(new_definition(vocab, merges, pattern, special_tokens), new_config(special_tokens))


def learn_merges(
    words: Counter[str], vocab: dict[str, int], vocab_size: int, min_frequency: int, show_progress: bool
) -> list[tuple[str, str]]:
    """Merge until `vocab` (extended in place) is full; returns the merges as pairs of tokens.

    A pair is the number `left << 32 | right`, so the order of numbers is the order of the pairs of ids, by which ties are broken.
    """
    token_of = list(vocab)
    corpus = _Corpus(words, vocab)
    heap = [(-corpus.counts[pair], pair) for pair in corpus.count_pairs()]
    heapify(heap)
    merges: list[tuple[str, str]] = []
    with progress(vocab_size - len(vocab), "BPE merges", unit="tokens", show=show_progress) as bar:
        while heap and len(vocab) < vocab_size:
            negative_count, pair = heappop(heap)
            if -negative_count != corpus.counts[pair]:  # stale: lower by now
                heappush(heap, (-corpus.counts[pair], pair))
                continue
            if corpus.counts[pair] < max(min_frequency, 1):
                break
            left, right = token_of[pair >> 32], token_of[pair & 0xFFFFFFFF]
            # No two merges spell the same token (bpe_train.md), but a special token may be spelled so: it keeps its id.
            new_id = vocab.setdefault(left + right, len(vocab))
            if new_id == len(token_of):
                token_of.append(left + right)
                bar.update(1)
            merges.append((left, right))
            for formed in corpus.merge(pair, new_id):
                if corpus.counts[formed] > 0:
                    heappush(heap, (-corpus.counts[formed], formed))
    return merges


class _Corpus:
    """All different words in one flat array, with the counts and the places of their pairs."""

    def __init__(self, words: Counter[str], vocab: dict[str, int]) -> None:
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        id_of_symbol = np.zeros(ord(max(ALPHABET)) + 1, np.int64)
        id_of_symbol[[ord(symbol) for symbol in ALPHABET]] = [vocab[symbol] for symbol in ALPHABET]
        code_points = np.frombuffer("".join(words).encode("utf-32-le"), "<u4")
        # Symbol i of the corpus, in word w, stands at i + w: one separator after each word before.
        places = np.arange(len(code_points)) + np.repeat(np.arange(len(words)), lengths)
        self.ids = np.full(len(code_points) + len(words), _SEPARATOR, np.int64)
        self.ids[places] = id_of_symbol[code_points]
        # Links in a circle: the last separator precedes the first word.
        self.following = np.roll(np.arange(len(self.ids)), -1)
        self.preceding = np.roll(np.arange(len(self.ids)), 1)
        self.weight = np.repeat(np.fromiter(words.values(), np.int64, len(words)), lengths + 1)
        self.counts: defaultdict[int, int] = defaultdict(int)
        self.places: dict[int, np.ndarray] = {}  # of each pair, where it was formed

    def count_pairs(self) -> list[int]:
        """Count all pairs; returns the different ones."""
        left, right, weight = self.ids[:-1], self.ids[1:], self.weight[:-1]
        inside = np.flatnonzero((left != _SEPARATOR) & (right != _SEPARATOR))
        return self._add(_pairs(left[inside], right[inside]), inside, weight[inside])

    def merge(self, pair: int, new_id: int) -> list[int]:
        """Join a pair everywhere; returns the newly formed pairs.

        `x a b y` becomes `x N y`: (x, a) and (b, y) occur less often, (x, N) and (N, y) more often. The count of the merged
        pair itself is left as it is: it is never looked up again.
        """
        a, b = pair >> 32, pair & 0xFFFFFFFF
        left = np.unique(self.places.pop(pair))
        left = left[self.ids[left] == a]  # an earlier merge may have taken the pair apart
        left = _without_overlap(left[self.ids[self.following[left]] == b], self.following)
        right = self.following[left]
        after = self.following[right]
        # y is read before merging: of two occurrences side by side, the right one is still old …
        y = self.ids[after]
        self.ids[left], self.ids[right] = new_id, _ABSORBED
        self.following[left] = after
        self.preceding[after] = left
        before = self.preceding[left]
        x = self.ids[before]  # … and the left one is new already
        has_x, has_y = x != _SEPARATOR, y != _SEPARATOR
        x, y, weight = x[has_x], y[has_y], self.weight[left]
        weights = np.concatenate([weight[has_x], weight[has_y]])
        self._subtract(np.concatenate([_pairs(x, a), _pairs(b, y)]), weights)
        formed = np.concatenate([_pairs(x, new_id), _pairs(new_id, y)])
        return self._add(formed, np.concatenate([before[has_x], left[has_y]]), weights)

    def _add(self, pairs: np.ndarray, places: np.ndarray, weights: np.ndarray) -> list[int]:
        """Count pairs and note their places; returns the different ones."""
        if not len(pairs):
            return []
        order = np.argsort(pairs, kind="stable")
        pairs, places = pairs[order], places[order]
        first = np.flatnonzero(np.diff(pairs, prepend=-1))
        totals = np.add.reduceat(weights[order], first)
        different = pairs[first].tolist()
        for pair, total, group in zip(different, totals.tolist(), np.split(places, first[1:]), strict=True):
            self.counts[pair] += total
            self.places[pair] = group
        return different

    def _subtract(self, pairs: np.ndarray, weights: np.ndarray) -> None:
        """Count pairs that are there no longer."""
        different, index = np.unique(pairs, return_inverse=True)
        totals = np.zeros(len(different), np.int64)
        np.add.at(totals, index, weights)
        for pair, total in zip(different.tolist(), totals.tolist(), strict=True):
            self.counts[pair] -= total


def _pairs(left: np.ndarray | int, right: np.ndarray | int) -> Int64[np.ndarray, " N"]:
    """Pairs of ids as single numbers."""
    return np.asarray(left, np.int64) << 32 | right
