"""Merging: every way of doing it gives the tokens of the library, for any list of merges and words of any length."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

import v2_handwritten.data_pipeline.tokenizer.bpe_encode as v2
import v3_numpy_deep.data_pipeline.tokenizer.bpe_encode as v3
from shared_data.tokenizer.byte_level import symbols_to_bytes, text_to_symbols

LEVELS = {"v2": v2, "v3": v3}


def shuffled_merges(seed: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Merges as no trainer would write them: in any order, tokens made in several ways, some parts made late or never."""
    rng = random.Random(seed)
    tokens = ["a", "b", "c"]
    merges = set()
    for _ in range(rng.choice([3, 8, 20])):
        left, right = rng.choices(tokens, k=2)
        merges.add((left, right))
        if left + right not in tokens:
            tokens.append(left + right)
    order = sorted(merges)
    rng.shuffle(order)
    return {token: id for id, token in enumerate(tokens)}, order


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("long_word", [0, 10**9], ids=["as long words", "as short words"])
def test_any_merges_in_any_order_give_the_tokens_of_the_library(level, long_word, monkeypatch):
    module = LEVELS[level]
    monkeypatch.setattr(module, "_LONG_WORD", long_word)
    for seed in range(120):
        vocab, merges = shuffled_merges(seed)
        model = models.BPE(vocab, merges)
        rng = random.Random(seed)
        words = ["".join(rng.choices("abc", k=rng.choice([1, 2, 5, 20, 60]))) for _ in range(6)] + [
            "a" * 33,
            "ab" * 16,
        ]
        expected = [[token.id for token in model.tokenize(word)] for word in words]
        ids = [[vocab[letter] for letter in word] for word in words]
        merged = module.Merges([(vocab[a], vocab[b]) for a, b in merges], [vocab[a + b] for a, b in merges])
        assert module.merge_words(ids, merged) == expected, (vocab, merges)
        assert [module.merge_word(word, merged) for word in ids] == expected, (vocab, merges)


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_to_merge_leaves_words_as_they_are(level):
    module = LEVELS[level]
    assert module.merge_words([[1, 2], [], [3]], module.Merges([], [])) == [[1, 2], [], [3]]
    assert module.merge_words([], module.Merges([(1, 2)], [3])) == []
    assert module.merge_word([], module.Merges([(1, 2)], [3])) == []


@pytest.mark.parametrize("level", LEVELS)
def test_a_megabyte_of_one_letter_is_one_word_and_takes_seconds(level):
    # With a step per letter and a look at every letter in each, this would take days.
    module = LEVELS[level]
    merges = module.Merges([(0, 0), (1, 1), (2, 2), (1, 0), (3, 4)], [1, 2, 3, 4, 5])
    assert module.merge_words([[0] * 1_000_003], merges) == [[3] * 124_999 + [5]]


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(text=st.text(max_size=20))
def test_bytes_are_written_as_the_library_writes_them_and_read_back(text):
    symbols = text_to_symbols(text)
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    assert symbols == "".join(piece for piece, _ in pieces)
    assert symbols_to_bytes(symbols) == text.encode()
