"""Byte-pair encoding of four words: the merges of bpe_train.md, and text encoded with them, as in tokenizer.md."""

from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np

from tests.worked import agrees
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer

TRAINING = "v2_handwritten/data_pipeline/tokenizer/bpe_train.md"
ENCODING = "shared_data/tokenizer/tokenizer.md"

TEXTS = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3
# In the order of the page.
PAIRS = [
    *("e s", "s t", "w e", "l o", "o w", "n e", "e w", "w i", "i d", "d e", "e r"),
    *("es t", "w es", "d es", "w est", "d est", "lo w", "low e"),
]


@cache
def tokenizer(merges: int) -> Tokenizer:
    """Trained on the four words, with so many merges."""
    return train_bpe(TEXTS, vocab_size=256 + merges)


def pieces(word: str, merges: int) -> list[str | None]:
    """The tokens of a word."""
    return [tokenizer(merges).id_to_token(id) for id in tokenizer(merges).encode(word)]


def pair_counts(merges: int) -> Counter[str]:
    """How often each pair of neighbours occurs after so many merges, counted anew."""
    return Counter(f"{a} {b}" for text in TEXTS for a, b in pairwise(pieces(text, merges)))


def test_counts_of_pairs_after_each_merge() -> None:
    counts = [pair_counts(merges) for merges in range(5)]
    assert set(PAIRS) == set().union(*counts)
    agrees(TRAINING, "pairs", [[after[pair] or np.nan for after in counts] for pair in PAIRS])


def test_merges_in_the_order_in_which_they_are_learned() -> None:
    learned = [" ".join(pair) for pair in tokenizer(10).definition["model"]["merges"]]
    assert learned == [
        *("e s", "es t", "l o", "lo w", "e w", "n ew", "new est", "d est", "i dest", "w idest"),
    ]
    rows = []
    for number, pair in enumerate(learned):
        symbols = sum(len(pieces(text, number + 1)) for text in TEXTS)
        rows.append([pair_counts(number)[pair], symbols, np.nan])
    agrees(TRAINING, "merge", rows)


def test_a_new_word_is_encoded_by_rank() -> None:
    """A row for every merge: the ranks of all pairs of neighbours, of which the lowest is joined."""
    rank = {(a, b): number for number, (a, b) in enumerate(tokenizer(10).definition["model"]["merges"])}
    symbols, rows = list("lowest"), []
    while True:
        ranks = [rank.get(pair, np.nan) for pair in pairwise(symbols)]
        rows.append(ranks + [np.nan] * (5 - len(ranks)))
        if np.isnan(ranks).all():
            break
        place = int(np.nanargmin(ranks))
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    agrees(ENCODING, "lowest", rows)
    assert symbols == pieces("lowest", 10)


def test_the_longest_token_first_would_give_others() -> None:
    assert pieces("newidest", 10) == ["new", "idest"]
    assert pieces("slower", 10) == ["s", "low", "e", "r"]
