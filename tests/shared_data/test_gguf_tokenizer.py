"""Tokenizers in GGUF files: how text is cut, added tokens, SentencePiece, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as LibraryTokenizer
from transformers.models.llama.tokenization_llama import LlamaTokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.tokenization_utils_base import generate_merges

from shared_data.errors import UserError
from shared_data.model_files.gguf import GgufFile
from shared_data.model_files.gguf_pre_tokenizers import PRE_TOKENIZERS, QWEN_PATTERN
from shared_data.model_files.gguf_sentencepiece import SPACE
from shared_data.model_files.gguf_tokenizer import tokenizer_from_gguf, tokenizer_to_gguf
from shared_data.tokenizer.byte_level import ALPHABET
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer

TEXT = "It's 2026: the CAFÉ't of 12345 foxes…\n\n  naïve ﬁ e\u0301 <|end|> <tool> <|begin|>"
MERGES = ["1 2", "12 3", "Ġ t", "h e", "Ġt he", "' s", "f o", "fo x"]
TOKENS = [
    *ALPHABET,
    *("".join(merge.split()) for merge in MERGES),
    "<|begin|>",
    "<|end|>",
    "<tool>",
    "[PAD267]",
]
ENTRIES: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [1] * 264 + [3, 3, 4, 5],
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 264,
    "tokenizer.ggml.eos_token_id": 265,
    "tokenizer.chat_template": "{{ messages }}",
}


def read(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tokenizer of a file with these entries; None takes one out."""
    entries = ENTRIES | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    entries = {name: value for name, value in entries.items() if value is not None}
    return tokenizer_from_gguf(GgufFile(Path("a.gguf"), entries, {}))


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_ids_are_those_of_the_library_for_every_way_to_cut(pre: str) -> None:
    definition, config = read(pre=pre)
    library = LibraryTokenizer.from_str(json.dumps(definition))
    ours = Tokenizer(definition, config)
    assert ours.encode(TEXT) == library.encode(TEXT, add_special_tokens=False).ids
    assert ours.encode(TEXT, add_special_tokens=True) == library.encode(TEXT).ids
    assert ours.decode(ours.encode(TEXT)) == library.decode(
        library.encode(TEXT).ids, skip_special_tokens=False
    ).removeprefix("<|begin|>")


def test_each_name_cuts_as_it_says() -> None:
    def numbers(pre: str) -> int:
        """How many ids 12345 has: the merges make 123 of neighbouring digits where nothing cuts them apart."""
        return len(Tokenizer(*read(pre=pre)).encode("12345"))

    assert [numbers(pre) for pre in ("gpt-2", "smollm", "qwen2", "llama-bpe")] == [3, 5, 5, 3]
    assert len(Tokenizer(*read(pre="llama-bpe")).encode("x1234")) == 3  # x 123 4
    assert QWEN_PATTERN == PRETOKENIZE_REGEX
    composed, apart = (Tokenizer(*read(pre="qwen2")).encode(text) for text in ("é", "e\u0301"))
    assert composed == apart


def test_added_tokens_the_template_and_the_configuration() -> None:
    definition, config = read(add_bos_token=True, add_eos_token=True)
    ours = Tokenizer(definition, config)
    assert ours.encode("<|end|><tool>", add_special_tokens=True) == [264, 265, 266, 265]
    assert ours.special_tokens == {"<|begin|>": 264, "<|end|>": 265}
    assert ours.vocab_size == 267  # what fills up the vocabulary is no token
    assert (config["bos_token"], config["eos_token"]) == ("<|begin|>", "<|end|>")
    assert config["chat_template"] == "{{ messages }}"
    for pre, begins in (("gpt-2", False), ("llama-bpe", True)):  # files that are silent about it
        ids = Tokenizer(*read(pre=pre)).encode("a", add_special_tokens=True)
        assert (ids[0] == 264) is begins


def test_the_way_back_gives_the_same_entries() -> None:
    for pre in ("gpt-2", "smollm", "dbrx", "llama-bpe", "qwen2"):
        definition, config = read(pre=pre, add_bos_token=True, add_eos_token=False)
        found = tokenizer_to_gguf(definition, config, len(TOKENS))
        expected = ENTRIES | {
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.add_eos_token": False,
        }
        assert found == expected
    definition["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}
    with pytest.raises(UserError, match=r"in a way that llama.cpp has no name for; export .* gpt-2, "):
        tokenizer_to_gguf(definition, config, len(TOKENS))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"model": "bert"}, r"a tokenizer of the kind 'bert'; supported are gpt2"),
    "pre": (
        {"pre": "default"},
        r"in the way 'default' \(tokenizer.ggml.pre\), .* supported are gpt-2, smollm",
    ),
    "no pre": ({"pre": None}, r"in the way None \(tokenizer.ggml.pre\)"),
    "no tokens": ({"tokens": None}, r"has no list of tokens"),
    "two tokens": ({"tokens": [*TOKENS[:-1], "a"]}, r"two tokens that read the same"),
    "types": ({"token_type": [1]}, r"has 268 tokens, but not a type for each"),
    "merges": ({"merges": ["a b c"]}, r"has no merges of two tokens each"),
    "end": ({"eos_token_id": 268}, r"has eos_token_id 268, which is no id"),
    "nothing to begin with": (
        {"bos_token_id": None, "add_bos_token": True},
        r"puts a token around each text",
    ),
    "no merges": ({"merges": None}, r"has no merges \(tokenizer.ggml.merges\)"),
    "scores": ({"model": "llama", "merges": None}, r"has no score for each of its tokens"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_damaged_or_not_supported_is_refused_in_one_line(name: str) -> None:
    changes, message = REFUSED[name]
    with pytest.raises(UserError, match=f"^a.gguf .*{message}.*") as caught:
        read(**changes)
    assert "; " in str(caught.value)


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = [
    "he",
    "ll",
    "hell",
    "hello",
    f"{SPACE}he",
    "lo",
    "llo",
    f"{SPACE}hello",
    "or",
    "wor",
    "ld",
    f"{SPACE}w",
]
LETTERS = list(f"{SPACE}helowrd,")
PIECE_TOKENS = ["<unk>", "<s>", "</s>", *BYTES, *PIECES, *LETTERS]
SENTENCEPIECE = {
    "model": "llama",
    "pre": "default",
    "merges": None,
    "tokens": PIECE_TOKENS,
    "token_type": [2, 3, 3, *[6] * 256, *[1] * (len(PIECES) + len(LETTERS))],
    # Pieces in the order in which they were found; two of them score the same.
    "scores": [0.0] * 259 + [-float(n - (n == 3)) for n in range(len(PIECES))] + [-100.0] * len(LETTERS),
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
}


def test_scores_become_merges_as_in_the_library() -> None:
    definition, config = read(**SENTENCEPIECE)
    vocab = {token: id for id, token in enumerate(PIECE_TOKENS)}
    merges = generate_merges(vocab, dict(zip(PIECE_TOKENS, SENTENCEPIECE["scores"], strict=True)))
    assert [tuple(pair) for pair in definition["model"]["merges"]] == merges
    theirs = LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)
    ours = LibraryTokenizer.from_str(json.dumps(definition))
    for text in ("hello world", " hello, hell", "world é…\n", "<s>hello</s>", "", "  two"):
        ids = ours.encode(text).ids
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert config["bos_token"] == "<s>"
    assert ours.encode("hello").tokens == ["<s>", f"{SPACE}hello"]
    listed = [" ".join(pair) for pair in merges[:2]]
    assert read(**SENTENCEPIECE | {"merges": listed, "scores": None})[0]["model"]["merges"] == [
        list(pair) for pair in merges[:2]
    ]
    silent = LibraryTokenizer.from_str(json.dumps(read(**SENTENCEPIECE, add_space_prefix=False)[0]))
    assert silent.encode("hello").tokens == ["<s>", "hello"]
