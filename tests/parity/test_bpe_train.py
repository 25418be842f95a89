"""Training: the same texts give the same merges and ids at all levels, ties included."""

import json
import random
from collections.abc import Iterator

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

import v1_quick.data_pipeline.tokenizer.bpe_train as v1
import v2_handwritten.data_pipeline.tokenizer.bpe_train as v2
import v3_numpy_deep.data_pipeline.tokenizer.bpe_train as v3
from shared_data.errors import UserError
from shared_data.settings import SPECIAL_TOKENS

LEVELS = {"v1": v1, "v2": v2, "v3": v3}


WORDS = "Mia Tom's the a red Ball found gave WE'LL it's 12345 2 lost, “quietly” café. Ömer!\n\n said: --- ..."


def story(seed: int) -> str:
    """A text of words that repeat, as stories do."""
    rng = random.Random(seed)
    words = WORDS.split(" ")
    return " ".join(rng.choices(words, k=120))


TEXTS = {
    "stories": [story(seed) for seed in range(20)],
    # Every pair of letters occurs once or twice: all decisions are ties.
    "ties": ["".join(random.Random(seed).sample("abcdefghijklmnop", 16)) for seed in range(30)],
    # Runs, which are joined to the same token in several ways ("aa" + "a" and "a" + "aa").
    "runs": ["a" * k + " " + "-" * (k + 3) + "\n" * (k % 5) + "ab" * k for k in range(1, 40)],
    "unicode": [
        "日本語の東京と京都、Привет мир! 🙂🙂🙃 ünïcödé naïve\u0301 \u0000\x1c\x85\u3000 Ⅷ½²٣٤",
        "ǅ ﬁ ß ſ " * 4,
    ]
    * 3,
    "one letter": ["a"],
    "empty texts among others": ["", "low low lower lowest", "", "\n"],
}


def definition_of(tokens) -> dict:
    """The content of `tokenizer.json`; transformers adds a post-processor that adds nothing."""
    if not isinstance(tokens, PreTrainedTokenizerFast):
        return tokens.definition
    return json.loads(tokens.backend_tokenizer.to_str()) | {"post_processor": None}


def vocab_of(tokens) -> dict[str, int]:
    """Tokens and their ids."""
    return definition_of(tokens)["model"]["vocab"]


@pytest.mark.parametrize("level", ["v2", "v3"])
@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
@pytest.mark.parametrize("name", TEXTS)
def test_merges_and_ids_equal_those_of_the_library(name, pattern, level, parity):
    reference, ours = (
        definition_of(LEVELS[key].train_bpe(TEXTS[name], 420, pattern, SPECIAL_TOKENS))
        for key in ("v1", level)
    )
    assert ours == reference
    merges, expected = (
        np.array([[d["model"]["vocab"][token] for token in pair] for pair in d["model"]["merges"]], np.int64)
        for d in (ours, reference)
    )
    parity(
        component=f"BPE training, {pattern}",
        quantity=f"merges of {name}",
        levels=f"v1-{level}",
        actual=merges,
        expected=expected,
        tolerance=0,
    )


def test_small_random_corpora_with_many_ties_train_alike():
    rng = random.Random(7)
    for _ in range(80):
        letters = rng.choice(["ab", "abc", "a b", "a-= ", "aé", "a\n "])
        texts = [
            "".join(rng.choices(letters, k=rng.choice([5, 30, 80]))) for _ in range(rng.choice([1, 5, 20]))
        ]
        special = rng.choice([[], ["<|endoftext|>"], ["a"], ["ab", "<|x|>", "<|x|>"]])
        options = (rng.choice([262, 290, 400]), rng.choice(["gpt2", "gpt4"]), special, rng.choice([1, 2, 3]))
        reference = definition_of(v1.train_bpe(texts, *options))
        assert v2.train_bpe(texts, *options).definition == reference, (texts, options)
        assert v3.train_bpe(texts, *options).definition == reference, (texts, options)


@pytest.mark.parametrize("level", LEVELS)
def test_special_tokens_come_first_then_bytes_in_the_order_of_their_characters(level):
    tokens = LEVELS[level].train_bpe(["low low low"], 270, special_tokens=SPECIAL_TOKENS)
    assert list(vocab_of(tokens))[:6] == [*SPECIAL_TOKENS, "!", '"']
    assert list(vocab_of(tokens).values()) == list(range(263))
    assert vocab_of(tokens)["Ā"] == 4 + 188  # byte 0, after the 188 printable ones
    assert [token["content"] for token in definition_of(tokens)["added_tokens"]] == SPECIAL_TOKENS


@pytest.mark.parametrize("level", LEVELS)
def test_the_worked_example_of_the_theory_page(level):
    """`bpe_train.md`: low ×5, lower ×2, newest ×6, widest ×3, one word a text."""
    texts = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3
    tokens = LEVELS[level].train_bpe(texts, 266)
    merges = definition_of(tokens)["model"]["merges"]
    assert [" ".join(pair) for pair in merges] == [
        *("e s", "es t", "l o", "lo w", "e w", "n ew", "new est", "d est", "i dest", "w idest"),
    ]
    assert tokens.encode("lowest") == [vocab_of(tokens)["low"], vocab_of(tokens)["est"]]


@pytest.mark.parametrize("level", LEVELS)
def test_exercise_a_tie_goes_to_the_smaller_pair_of_ids(level):
    """`bpe_train.md`, exercise: which merge comes first in "ba ca", and why not the other?"""
    tokens = LEVELS[level].train_bpe(["ca", "ba"], 257, min_frequency=1)
    assert definition_of(tokens)["model"]["merges"] == [["b", "a"]]


@pytest.mark.parametrize("level", LEVELS)
def test_no_pair_below_the_minimum_frequency_is_merged(level):
    texts = ["abab", "xyz"]
    assert len(vocab_of(LEVELS[level].train_bpe(texts, 300, min_frequency=2))) == 257
    assert len(vocab_of(LEVELS[level].train_bpe(texts, 300, min_frequency=1))) == 260


@pytest.mark.parametrize("level", LEVELS)
def test_texts_are_read_once_from_any_iterable(level):
    def stream() -> Iterator[str]:
        yield from TEXTS["stories"]

    tokens = LEVELS[level].train_bpe(stream(), 300)
    assert tokens.encode(TEXTS["stories"][3]) == LEVELS[level].train_bpe(TEXTS["stories"], 300).encode(
        TEXTS["stories"][3]
    )


@pytest.mark.parametrize("level", ["v2", "v3"])
@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["a"], {"vocab_size": 255}, "too small"),
        (["a"], {"vocab_size": 259, "special_tokens": SPECIAL_TOKENS}, "set tokenizer.vocab_size to 260"),
        ([], {"vocab_size": 300}, "no text"),
        (["", ""], {"vocab_size": 300}, "no text"),
        (["a"], {"vocab_size": 300, "pattern": "gpt9"}, "gpt2, gpt4"),
        (["a"], {"vocab_size": 300, "special_tokens": [""]}, "empty"),
        (["fine", "half \ud83d a pair"], {"vocab_size": 300}, "lone surrogate"),
    ],
)
def test_what_cannot_be_trained_is_refused(level, texts, options, message):
    with pytest.raises(UserError, match=message):
        LEVELS[level].train_bpe(texts, **options)
