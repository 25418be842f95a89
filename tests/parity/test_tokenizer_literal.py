"""`encode(literal=…)`: at these places of a text no added token is found, and everything else is as it was."""

import json
import random
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

import v2_handwritten.data_pipeline.tokenizer.tokenizer as v2
import v3_numpy_deep.data_pipeline.tokenizer.tokenizer as v3
from shared_data.tokenizer.byte_level import ALPHABET
from shared_data.tokenizer.normalizer import Normalizer

LEVELS = {"v2": v2.Tokenizer, "v3": v3.Tokenizer}
NORMALIZERS = {
    "none": None,
    "NFC": normalizers.NFC(),
    "Llama-2": normalizers.Sequence([normalizers.Prepend("_"), normalizers.Replace(" ", "_")]),
    "Gemma": normalizers.Replace(" ", "_"),
    "Strip": normalizers.Strip(),
    "shorter": normalizers.Replace("aa", "a"),
}
TOKENS = [
    AddedToken("<s>", special=True, normalized=False),
    AddedToken("<s>b", special=True, normalized=False),
    AddedToken("<u>", special=False, normalized=True),
    AddedToken(" e", special=False, normalized=True),
    AddedToken("日", special=False, normalized=True),
]


def load(
    normalizer: str, folder: Path, added: list[AddedToken] = TOKENS
) -> dict[str, v2.Tokenizer | v3.Tokenizer]:
    """A tokenizer of single bytes, with added tokens of both kinds."""
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={token: id for id, token in enumerate(ALPHABET)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if NORMALIZERS[normalizer]:
        backend.normalizer = NORMALIZERS[normalizer]
    backend.add_tokens(added)
    backend.save(str(folder / "tokenizer.json"))
    return {name: level.load(folder) for name, level in LEVELS.items()}


def names(tokens: v2.Tokenizer | v3.Tokenizer, text: str, literal: object) -> str:
    """The tokens of a text, with `|` around those that are added."""
    ids = tokens.encode(text, literal=literal)
    added = {token["id"] for token in tokens.definition["added_tokens"]}
    return "".join(
        f"|{tokens.id_to_token(id)}|" if id in added else str(tokens.id_to_token(id)) for id in ids
    )


def test_a_conversation_in_which_the_user_types_tokens(tmp_path):
    text = "<s>user: <s> <u><s>b end"
    typed = range(text.index(" <s>"), text.index("<u>"))
    for tokens in load("none", tmp_path).values():
        assert names(tokens, text, ()) == "|<s>|user:Ġ|<s>|Ġ|<u>||<s>b|| e|nd"
        assert names(tokens, text, typed) == "|<s>|user:Ġ<s>Ġ|<u>||<s>b|| e|nd"
        # One position inside a token is enough, and a shorter one that ends before it is found.
        assert names(tokens, text, [text.index("b end")]) == "|<s>|user:Ġ|<s>|Ġ|<u>||<s>|b| e|nd"
        assert names(tokens, text, {1, 10}) == "<s>user:Ġ<s>Ġ|<u>||<s>b|| e|nd"
        assert names(tokens, text, range(len(text))) == text.replace(" ", "Ġ")


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_no_token_covers_a_literal_place_and_no_place_changes_the_text(normalizer, tmp_path):
    draw = random.Random(8)
    pieces = ["<s>", "<u>", "<s>b", " e", "日", "e\u0301", "aa", "a", " ", "x", "<", "s>", ">", "b"]
    levels = load(normalizer, tmp_path)
    normalize = Normalizer(json.loads((tmp_path / "tokenizer.json").read_text())["normalizer"])
    for _ in range(1500):
        text = "".join(draw.choices(pieces, k=draw.randint(0, 8)))
        literal = {place for place in range(len(text)) if draw.random() < 0.3}
        found = [tokens.encode(text, literal=literal) for tokens in levels.values()]
        assert found[0] == found[1]
        if normalizer in ("none", "NFC"):
            assert levels["v2"].decode(found[0]) == normalize(text)
        everything = [tokens.encode(text, literal=range(len(text))) for tokens in levels.values()]
        assert everything[0] == everything[1]
        assert max(everything[0], default=0) < 256
        for tokens in levels.values():
            assert tokens.encode(text, literal=[]) == tokens.encode(text)


@pytest.mark.parametrize("normalizer", ["none", "NFC", "Gemma", "Strip", "shorter"])
def test_tokens_of_normalized_text_keep_away_from_literal_places(normalizer, tmp_path):
    text = "aa<u>aa <u>x<u>"
    for tokens in load(normalizer, tmp_path).values():
        for place in (2, 3, 4, 8, 9, 10, 12, 14):
            written = names(tokens, text, [place])
            assert (written.count("|<u>|"), written.count("<u>")) == (2, 3)
            number = (place > 5) + (place > 11)  # which of the three it touches
            assert [part == "|<u>|" for part in _split(written)] == [index != number for index in range(3)]


def _split(written: str) -> list[str]:
    """The three tokens of the text above, as they were written."""
    parts, position = [], 0
    for _ in range(3):
        start = written.index("<u>", position)
        parts.append(written[start - 1 : start + 4] if written[start - 1 : start] == "|" else "<u>")
        position = start + 3
    return parts


def test_special_tokens_and_literal_places_are_two_things(tmp_path):
    for tokens in load("none", tmp_path).values():
        assert tokens.encode("<s><u>", allow_special=False, literal=[0]) == tokens.encode(
            "<s><u>", allow_special=False
        )
        assert names(tokens, "<s><u>", [3]) == "|<s>|<u>"
