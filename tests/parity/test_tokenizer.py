"""Our own tokenizers: the same ids, texts and files at levels 2 and 3 as in transformers, which is level 1."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import v1_quick.data_pipeline.tokenizer.bpe_train as v1
import v2_handwritten.data_pipeline.tokenizer.bpe_train as v2
import v3_numpy_deep.data_pipeline.tokenizer.bpe_train as v3
from shared_data.errors import UserError
from shared_data.settings import SPECIAL_TOKENS
from shared_data.tokenizer.byte_level import ALPHABET, BYTE_TO_SYMBOL
from tests.parity.test_bpe_train import TEXTS as CORPORA
from tests.parity.test_bpe_train import definition_of
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer2
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer3

BY_HAND = {"v2": v2, "v3": v3}
LEVELS = {"v1": v1, **BY_HAND}
CORPUS = [text for texts in CORPORA.values() for text in texts]


@pytest.fixture(scope="module", params=["gpt2", "gpt4"])
def tokens(request) -> dict:
    """The tokenizer of each level."""
    return {
        name: level.train_bpe(CORPUS, 600, request.param, SPECIAL_TOKENS) for name, level in LEVELS.items()
    }


# Single characters (some of them newer than Unicode 16) and short texts on which the patterns differ.
CHARACTERS = " \x1c\x85\u3000\0²½é日ǅ🙂\u0301\u200d\ua7ce\U00010940\U0003347f\U0010ffff"
SHORT_TEXTS = [
    "<|end", "|>", "'s", "'LL", "'ſ", "   ", "\n\n", "\r\n", "1234", "the", " Ball", "e\u0301", "---",
    "aaaa",
]  # fmt: skip
FRAGMENTS = st.sampled_from([*SPECIAL_TOKENS, *CHARACTERS, *SHORT_TEXTS])
TEXTS = st.lists(FRAGMENTS | st.text(max_size=6), max_size=15).map("".join)
SETTINGS = settings(
    max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@SETTINGS
@given(text=TEXTS, allow_special=st.booleans())
def test_any_text_gets_the_same_ids_and_comes_back(tokens, text, allow_special):
    expected = tokens["v1"](text, split_special_tokens=not allow_special).input_ids
    for level in BY_HAND:
        assert tokens[level].encode(text, allow_special) == expected
    for level in tokens.values():
        assert level.decode(expected) == text


@SETTINGS
@given(ids=st.lists(st.integers(0, 700), max_size=30), skip=st.booleans())
def test_any_ids_give_the_text_of_the_library(tokens, ids, skip):
    expected = tokens["v1"].decode(ids, skip_special_tokens=skip)
    assert tokens["v2"].decode(ids, skip) == tokens["v3"].decode(ids, skip) == expected


@SETTINGS
@given(data=st.binary(max_size=12))
def test_bytes_that_are_no_utf8_decode_as_in_the_library(tokens, data):
    alphabet = {symbol: id for id, symbol in enumerate(ALPHABET, len(SPECIAL_TOKENS))}
    ids = [alphabet[BYTE_TO_SYMBOL[byte]] for byte in data]
    expected = tokens["v1"].decode(ids)
    for level in BY_HAND:
        assert tokens[level].decode(ids) == expected
        assert tokens[level].decode_bytes(ids) == data


def test_ids_of_a_corpus_are_the_same_arrays(tokens, parity):
    rows = tokens["v1"](CORPUS, split_special_tokens=True).input_ids
    for level in BY_HAND:
        actual = tokens[level].encode_to_array(iter(CORPUS), end_of_text=True)
        assert actual.dtype == np.uint32
        parity(
            component="tokenizer, own file",
            quantity=f"ids of {len(CORPUS)} texts",
            levels=f"v1-{level}",
            actual=actual.astype(np.int64),
            expected=np.asarray([id for row in rows for id in [*row, 0]], np.int64),
            tolerance=0,
        )
        assert tokens[level].encode_batch(CORPUS) == tokens["v1"](CORPUS).input_ids
        assert len(tokens[level].encode_to_array([])) == 0


@pytest.mark.parametrize("level", BY_HAND)
def test_every_special_token_is_one_id_where_allowed_and_text_where_not(tokens, level):
    tokenizer = tokens[level]
    for token, id in tokenizer.special_tokens.items():
        assert tokenizer.encode(f"a{token}b") == [*tokenizer.encode("a"), id, *tokenizer.encode("b")]
        plain = tokenizer.encode(token, allow_special=False)
        assert id not in plain
        assert tokenizer.decode(plain) == token
        assert tokenizer.encode_to_array([token]).tolist() == plain  # documents cannot end themselves
        assert tokenizer.decode([id, *plain], skip_special_tokens=True) == token
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("text", ["\ud800", "half \udfff a pair", "a<|pad|>\udc00"])
@pytest.mark.parametrize("level", BY_HAND)
def test_lone_surrogates_are_refused(tokens, level, text):
    with pytest.raises(UserError, match="lone surrogate"):
        tokens[level].encode(text)
    with pytest.raises(UserError, match="lone surrogate"):
        tokens[level].encode_to_array(["fine", text])


@pytest.mark.parametrize("level", LEVELS)
def test_a_saved_folder_is_the_same_tokenizer_at_all_levels_and_in_transformers(tokens, level, tmp_path):
    save = tokens[level].save_pretrained if level == "v1" else tokens[level].save
    save(tmp_path / level)
    saved = json.loads((tmp_path / level / "tokenizer.json").read_text())
    assert saved | {"post_processor": None} == definition_of(tokens["v1"])
    text = "".join(CORPUS) + "".join(SPECIAL_TOKENS)
    expected, vocab_size = tokens["v1"].encode(text), len(tokens["v1"])
    conversation = [{"role": "user", "content": "Who?"}]
    template = tokens["v1"].apply_chat_template(conversation, tokenize=False)
    for loader in (AutoTokenizer, PreTrainedTokenizerFast):
        hf = loader.from_pretrained(tmp_path / level)
        assert hf(text).input_ids == expected
        assert hf.decode(expected) == text
        assert (hf.bos_token_id, hf.eos_token_id, hf.pad_token_id, len(hf)) == (0, 0, 1, vocab_size)
        assert hf.apply_chat_template(conversation, tokenize=False) == template
    for other in (Tokenizer2, Tokenizer3):
        again = other.load(tmp_path / level)
        assert again.encode(text) == expected
        assert (again.vocab_size, again.end_of_text_id) == (vocab_size, 0)
        assert again.special_tokens == {token: id for id, token in enumerate(SPECIAL_TOKENS)}
        again.save(tmp_path / "again")
        assert json.loads((tmp_path / "again/tokenizer.json").read_text()) == saved
        hf = AutoTokenizer.from_pretrained(tmp_path / "again")
        assert hf.apply_chat_template(conversation, tokenize=False) == template


@pytest.mark.parametrize("level", BY_HAND)
def test_a_tokenizer_without_special_tokens_has_no_end_of_text(level):
    with pytest.raises(UserError, match="no special token"):
        _ = BY_HAND[level].train_bpe(["low"], 256).end_of_text_id
