"""Byte-pair encoding of four words: the merges of bpe_train.md, and text encoded with them, as in tokenizer.md."""

from collections import Counter
from itertools import pairwise

import numpy as np

from tests.worked import agrees
from v2_handwritten.data_pipeline.tokenizer.bpe_encode import Merges, merge_word
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer

TRAINING, ENCODING = (
    "v2_handwritten/data_pipeline/tokenizer/bpe_train.md",
    "shared_data/tokenizer/tokenizer.md",
)

TEXTS = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3
PAIRS = (
    """
e s   s t   w e   l o   o w   n e   e w   w i   i d   d e   e r
es t   w es   d es   w est   d est   lo w   low e
""".strip()
    .replace("\n", "   ")
    .split("   ")
)  # in the order of the page


def tokenizer(merges: int) -> Tokenizer:
    """Trained on the four words, with so many merges."""
    return train_bpe(TEXTS, vocab_size=256 + merges)


def pieces(word: str, merges: int) -> list[str]:
    tokens = tokenizer(merges)
    return [tokens.id_to_token(id) or "" for id in tokens.encode(word)]


def pair_counts(merges: int) -> Counter[str]:
    """How often each pair of neighbours occurs after so many merges, counted anew."""
    counts: Counter[str] = Counter()
    for text in TEXTS:
        counts.update(map(" ".join, pairwise(pieces(text, merges))))
    return counts


def test_counts_of_pairs_after_each_merge() -> None:
    counts = [pair_counts(merges) for merges in range(5)]
    agrees(TRAINING, "pairs", [[after[pair] or np.nan for after in counts] for pair in PAIRS])
    assert set(PAIRS) == {pair for after in counts for pair in after}


def test_merges_in_the_order_in_which_they_are_learned() -> None:
    learned = tokenizer(10).definition["model"]["merges"]
    assert [" ".join(pair) for pair in learned] == [
        *("e s", "es t", "l o", "lo w", "e w", "n ew", "new est", "d est", "i dest", "w idest"),
    ]
    rows = []
    for number, pair in enumerate(learned):
        symbols = sum(len(pieces(text, number + 1)) for text in TEXTS)
        rows.append([pair_counts(number)[" ".join(pair)], symbols, np.nan])
    agrees(TRAINING, "merge", rows)


def test_a_new_word_is_encoded_by_rank() -> None:
    """Each row of the page: the rank of every pair of neighbours, before the lowest is joined."""
    tokens = tokenizer(10)
    ids = {
        token: tokens.token_to_id(token) or 0
        for pair in tokens.definition["model"]["merges"]
        for token in pair
    }
    pairs = [(ids[a], ids[b]) for a, b in tokens.definition["model"]["merges"]]
    new_ids = [tokens.token_to_id(a + b) or 0 for a, b in tokens.definition["model"]["merges"]]
    merges, symbols, rows = Merges(pairs, new_ids), [tokens.token_to_id(byte) or 0 for byte in "lowest"], []
    while True:
        ranks = [merges.rank.get(pair, np.nan) for pair in pairwise(symbols)]
        rows.append(ranks + [np.nan] * (5 - len(ranks)))
        if np.isnan(ranks).all():
            break
        place = int(np.nanargmin(ranks))
        symbols[place : place + 2] = [new_ids[int(ranks[place])]]
    agrees(ENCODING, "lowest", rows)
    assert (
        symbols
        == tokens.encode("lowest")
        == merge_word([tokens.token_to_id(byte) for byte in "lowest"], merges)
    )


def test_the_longest_token_first_would_give_others() -> None:
    assert pieces("newidest", 10) == ["new", "idest"]
    assert pieces("slower", 10) == ["s", "low", "e", "r"]
