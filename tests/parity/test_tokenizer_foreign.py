"""Tokenizers of other models: levels 2 and 3 read their files and give the ids that `tokenizers` gives.

The files are built here with the library, in the styles of real models, so that nothing is downloaded.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

import v2_handwritten.data_pipeline.tokenizer.tokenizer as v2
import v3_numpy_deep.data_pipeline.tokenizer.tokenizer as v3
from shared_data.errors import UserError

LEVELS = {"v2": v2.Tokenizer, "v3": v3.Tokenizer}

CORPUS = [
    "The quick brown fox can't jump over 12 lazy dogs; they're asleep.\n\n    Indented   code: x = y1 + 2024;\n",
    "Ünïcödé naïve café – “quotes” … 東京都は日本の首都です。 Привет, мир! مرحبا 🙂🙂 👩‍👩‍👧\r\n\ttabs\tand  spaces  ",
    "WE'RE SHOUTING, I'LL SAY; it's 1234567 o'clock -------- ======== ........ aaaaaaaa abababab\n\n\n",
] * 3

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(use_regex: bool, add_prefix_space: bool = False):
    return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)


def split(pattern: str, behavior: str = "isolated", invert: bool = False):
    return pre_tokenizers.Split(Regex(pattern), behavior=behavior, invert=invert)


# Style -> the pre-tokenizer, and for some the normalizer.
STYLES = {
    "gpt2": (byte_level(True), None),
    "roberta": (byte_level(True, add_prefix_space=True), None),
    "llama3": (pre_tokenizers.Sequence([split(LLAMA3), byte_level(False)]), None),
    "qwen2": (pre_tokenizers.Sequence([split(QWEN2), byte_level(False)]), normalizers.NFC()),
    "smollm2": (pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level(True)]), None),
    "digits together": (pre_tokenizers.Sequence([pre_tokenizers.Digits(False), byte_level(True)]), None),
    "gpt4o": (pre_tokenizers.Sequence([split(GPT4O), byte_level(False)]), None),
    "deepseek": (
        pre_tokenizers.Sequence(
            [
                split(r"\p{N}{1,3}"),
                split(r"[一-龥぀-ゟ゠-ヿ]+"),
                split(r"[A-Za-z]+| ?\p{P}+|\s+"),
                byte_level(False),
            ]
        ),
        None,
    ),
    "removed": (pre_tokenizers.Sequence([split(r"\s+", "removed"), byte_level(False)]), None),
    "inverted": (
        pre_tokenizers.Sequence([split(r"\p{L}+", "removed", invert=True), byte_level(False)]),
        None,
    ),
    "with previous": (
        pre_tokenizers.Sequence([split(r"\s", "merged_with_previous"), byte_level(False)]),
        None,
    ),
    "with next": (pre_tokenizers.Sequence([split(r"\s", "merged_with_next"), byte_level(False)]), None),
    "contiguous": (pre_tokenizers.Sequence([split(r"[aeiou]", "contiguous"), byte_level(False)]), None),
    "string": (pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "isolated"), byte_level(False)]), None),
    "no split": (byte_level(False), None),
    "nfd": (
        pre_tokenizers.Sequence([split(LLAMA3), byte_level(False)]),
        normalizers.Sequence([normalizers.NFD()]),
    ),
}


def train(style: str, special: tuple[str, ...] = ("<|endoftext|>",)) -> tokenizers.Tokenizer:
    """A small tokenizer in the style of a model."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, normalizer = STYLES[style]
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


class Library:
    """`tokenizers` itself, with the methods of our tokenizers."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend = backend
        added = backend.get_added_tokens_decoder()
        self.special_tokens = {token.content: id for id, token in added.items() if token.special}

    def encode(self, text: str, allow_special: bool = True) -> list[int]:
        self.backend.encode_special_tokens = not allow_special
        return self.backend.encode(text).ids

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)


def load(backend: tokenizers.Tokenizer, folder: Path) -> dict[str, object]:
    """The same file at levels 2 and 3, and in the library."""
    backend.save(str(folder / "tokenizer.json"))
    return {name: level.load(folder) for name, level in LEVELS.items()} | {"v1": Library(backend)}


# Pieces on which patterns differ: single characters (some of them newer than Unicode 16), and short texts.
CHARACTERS = (
    " \n\t\x1c\x85\u3000\0/2Ⅷ²½٣éǅʰﬁ日🙂\u0301\u0323\u0600\u0897\u1acf\ua7ce\U00010940\U00011930\U0003347f"
)
SHORT_TEXTS = [
    "'s", "'LL", "'ſ", "  ", "\r\n", "3456", "the", " The", "Don't", "e\u0301", "한글", "--", "aaa",
    "<|endoftext|>",
]  # fmt: skip
FRAGMENTS = st.sampled_from([*CHARACTERS, *SHORT_TEXTS])
TEXTS = st.lists(FRAGMENTS | st.text(max_size=4), max_size=12).map("".join)


@pytest.fixture(scope="module", params=sorted(STYLES))
def loaded(request, tmp_path_factory) -> dict[str, object]:
    return load(train(request.param), tmp_path_factory.mktemp("style"))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(text=TEXTS)
def test_any_text_gets_the_ids_of_the_library_in_each_style(loaded, text):
    expected = loaded["v1"].encode(text)
    assert loaded["v2"].encode(text) == expected
    assert loaded["v3"].encode(text) == expected
    assert loaded["v2"].decode(expected) == loaded["v3"].decode(expected) == loaded["v1"].decode(expected)


@pytest.mark.parametrize("style", ["gpt2", "llama3", "qwen2", "smollm2"])
@pytest.mark.parametrize("level", ["v2", "v3"])
def test_ids_of_a_corpus_are_the_same_arrays(style, level, tmp_path, parity):
    tokens = load(train(style), tmp_path)
    expected = [id for text in CORPUS for id in [*tokens["v1"].encode(text, allow_special=False), 0]]
    parity(
        component=f"tokenizer, {style} file",
        quantity="ids",
        levels=f"v1-{level}",
        actual=tokens[level].encode_to_array(CORPUS, end_of_text=True).astype(np.int64),
        expected=np.asarray(expected, np.int64),
        tolerance=0,
    )


def test_ignore_merges_takes_a_word_that_is_a_token_as_it_is(tmp_path):
    backend = train("llama3")
    definition = json.loads(backend.to_str())
    # A token that no merge makes, as Llama-3 has them.
    definition["model"]["vocab"]["Ġzyx"] = len(definition["model"]["vocab"])
    for ignore in (False, True):
        definition["model"]["ignore_merges"] = ignore
        tokens = load(tokenizers.Tokenizer.from_str(json.dumps(definition)), tmp_path)
        expected = tokens["v1"].encode("a zyx, zyx zyxw the")
        assert (definition["model"]["vocab"]["Ġzyx"] in expected) == ignore
        assert (
            tokens["v2"].encode("a zyx, zyx zyxw the")
            == tokens["v3"].encode("a zyx, zyx zyxw the")
            == expected
        )


def test_merges_as_strings_and_missing_options_are_read_as_older_files_have_them(tmp_path):
    definition = json.loads(train("gpt2").to_str())
    definition["model"]["merges"] = [" ".join(pair) for pair in definition["model"]["merges"]]
    for option in ("ignore_merges", "byte_fallback", "fuse_unk", "dropout", "unk_token"):
        del definition["model"][option]
    del definition["pre_tokenizer"]["use_regex"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    expected = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(CORPUS[0]).ids
    for level in LEVELS.values():
        assert level.load(tmp_path).encode(CORPUS[0]) == expected


@pytest.mark.parametrize(
    "decoder", [None, {"type": "Fuse"}, {"type": "Sequence", "decoders": [{"type": "Fuse"}]}]
)
def test_a_byte_level_file_with_another_decoder_writes_what_the_library_writes(decoder, tmp_path):
    definition = json.loads(train("gpt2").to_str()) | {"decoder": decoder}
    tokens = load(tokenizers.Tokenizer.from_str(json.dumps(definition)), tmp_path)
    for level in (tokens["v2"], tokens["v3"]):
        ids = level.encode("naïve café the")
        assert level.decode(ids) == tokens["v1"].decode(ids) != "naïve café the"
        assert level.decode_bytes(ids) == "naïve café the".encode()
        assert level.byte_lengths[ids].sum() == len("naïve café the".encode())


def test_gpt2_files_are_read_like_the_library_reads_them(tmp_path):
    definition = json.loads(train("gpt2").to_str())
    (tmp_path / "vocab.json").write_text(json.dumps(definition["model"]["vocab"]), encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in definition["model"]["merges"]), ""])
    (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
    reference = Library(
        tokenizers.Tokenizer(models.BPE.from_file(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")))
    )
    reference.backend.pre_tokenizer = byte_level(True)
    reference.backend.add_special_tokens(["<|endoftext|>"])
    for level in LEVELS.values():
        for path in (tmp_path, tmp_path / "vocab.json", tmp_path / "merges.txt"):
            tokens = level.load(path)
            text = CORPUS[0] + "<|endoftext|>" + CORPUS[1]
            assert tokens.encode(text) == reference.encode(text)
            assert tokens.special_tokens == {"<|endoftext|>": 0}
        level.load(tmp_path).save(tmp_path / "saved")
        assert tokenizers.Tokenizer.from_file(str(tmp_path / "saved/tokenizer.json")).encode(
            text
        ).ids == reference.encode(text)


FLAGS = st.fixed_dictionaries(
    {flag: st.booleans() for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")}
)
CONTENTS = ["<mask>", "<mask>x", " the", "é", "e\u0301t", "café", "日本", "Ġq", "ab", "<|endoftext|>"]


def check_added_tokens(definition, flags, text, allow_special, folder):
    """All levels find the same added tokens in a text, and write them alike."""
    backend = tokenizers.Tokenizer.from_str(definition)
    for content, options in flags.items():
        backend.add_tokens([AddedToken(content, **options)])
    tokens = load(backend, folder)
    expected = tokens["v1"].encode(text, allow_special)
    for level in LEVELS:
        assert tokens[level].encode(text, allow_special) == expected
        assert tokens[level].special_tokens == tokens["v1"].special_tokens
        for skip in (False, True):
            assert tokens[level].decode(expected, skip) == tokens["v1"].decode(expected, skip)


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    flags=st.fixed_dictionaries(dict.fromkeys(CONTENTS, FLAGS)),
    text=st.lists(st.sampled_from([*CONTENTS, *" \t\x1c\u2000x_²\u200d!\u0301"]), max_size=10).map("".join),
    allow_special=st.booleans(),
)
def test_added_tokens_with_any_flags_are_found_where_the_library_finds_them(
    qwen2, flags, text, allow_special, tmp_path_factory
):
    check_added_tokens(qwen2, flags, text, allow_special, tmp_path_factory.mktemp("added"))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"<a>": {}, "<a>b": {}, "<a>bc": {}}, "<a>bcd <a>bd <a>d"),  # the longest that begins here
        ({"<a>b": {}, "b<c>": {}, "a": {}}, "<a>b<c>"),  # the leftmost
        ({"<a>": {"rstrip": True, "lstrip": True}}, "x <a> \t <a>  y"),  # space between two is taken once
        ({"<a>": {"rstrip": True}, " <b>": {}}, "<a> <b>"),  # what was taken is found again
        ({"e\u0301t": {"normalized": True}}, "\u00e9t e\u0301t"),  # found, and written, normalized
        ({"e\u0301t": {"normalized": True, "special": True}}, "e\u0301t"),  # and then not skipped as special
        ({"<a>": {"single_word": True}}, "<a> x<a> <a>x (<a>) _<a> ²<a> \u200d<a> <a>\u0301 \ua7ce<a>"),
        ({"Ġq": {}, "é": {}, "日本": {}}, "Ġq é 日本"),  # spelled like bytes, or not
    ],
)
def test_the_rules_of_added_tokens_one_by_one(qwen2, flags, text, tmp_path):
    defaults = {"normalized": False}
    check_added_tokens(qwen2, {key: defaults | value for key, value in flags.items()}, text, True, tmp_path)


@pytest.fixture(scope="module")
def qwen2() -> str:
    return train("qwen2", ()).to_str()


def test_a_template_adds_its_tokens_only_on_request(tmp_path):
    backend = train("llama3", ("<|begin_of_text|>", "<|end_of_text|>"))
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A <|end_of_text|>",
        pair="<|begin_of_text|> $A $B",
        special_tokens=[("<|begin_of_text|>", 0), ("<|end_of_text|>", 1)],
    )
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    tokens = load(backend, tmp_path)
    for level in (tokens["v2"], tokens["v3"]):
        assert level.encode("") == []
        assert level.encode("a fox", add_special_tokens=True) == [0, *level.encode("a fox"), 1]
        assert level.encode("a fox", add_special_tokens=True) == tokens["v1"].encode("a fox")
        assert level.encode_batch(["a", ""], add_special_tokens=True)[1] == [0, 1]
        assert level.encode_to_array(["", "a"]).tolist() == [0, 1, 0, *level.encode("a"), 1]
        assert level.end_of_text_id == 1


def test_ids_with_gaps_count_to_the_largest(tmp_path):
    definition = json.loads(train("gpt2").to_str())
    definition["model"]["vocab"]["Ġfar"] = 1000
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    for level in LEVELS.values():
        tokens = level.load(tmp_path)
        assert tokens.vocab_size == 1001
        assert tokens.decode([999, 1000]) == " far"


def test_bytes_outside_of_the_vocabulary_become_the_unknown_token_or_nothing(tmp_path):
    definition = json.loads(train("gpt2").to_str())
    model = definition["model"]
    model["vocab"] = {token: id for token, id in model["vocab"].items() if token not in ("z", "Ã", "Q")}
    model["merges"] = [pair for pair in model["merges"] if not {"z", "Ã", "Q"} & set("".join(pair))]
    for unknown, fuse in ((None, False), ("<|endoftext|>", False), ("<|endoftext|>", True)):
        model["unk_token"], model["fuse_unk"] = unknown, fuse
        tokens = load(tokenizers.Tokenizer.from_str(json.dumps(definition)), tmp_path)
        for text in ("zzz thezz zfox", "éz", "Q", "quiz"):
            assert tokens["v2"].encode(text) == tokens["v3"].encode(text) == tokens["v1"].encode(text)


def change(path: str, value: object):
    """A change of one field of a definition, for files that must be refused."""

    def apply(definition: dict) -> dict:
        *parents, last = path.split(".")
        target = definition
        for parent in parents:
            target = target[parent]
        target[last] = value
        return definition

    return apply


REFUSED = {
    "a list": lambda definition: [definition],
    "no model": lambda definition: {"version": "1.0"},
    "WordPiece": change("model", {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[UNK]": 0}}),
    "Unigram": change("model", {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}),
    "byte fallback": change("model.byte_fallback", True),
    "dropout": change("model.dropout", 0.1),
    "prefix": change("model.continuing_subword_prefix", "##"),
    "vocabulary empty": change("model", {"type": "BPE", "vocab": {}, "merges": []}),
    "vocabulary a list": change("model.vocab", ["a"]),
    "ids that are texts": change("model.vocab.x y", "1"),
    "two tokens of one id": change("model.vocab.x y", 1),
    "merges missing": change("model.merges", None),
    "merge of one token": change("model.merges", [["a"]]),
    "merge of unknown tokens": change("model.merges", [["not", "there"]]),
    "a step after ByteLevel": change(
        "pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, {"type": "Digits"}]}
    ),
    "split without a pattern": change(
        "pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "Split"}, {"type": "ByteLevel"}]}
    ),
    "pattern malformed": change(
        "pre_tokenizer",
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"},
                {"type": "ByteLevel"},
            ],
        },
    ),
    "pattern of another dialect": change(
        "pre_tokenizer",
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "a{1,3}+"}, "behavior": "Isolated"},
                {"type": "ByteLevel"},
            ],
        },
    ),
    "Lowercase": change("normalizer", {"type": "Lowercase"}),
    "added token without an id": change("added_tokens", [{"content": "<x>"}]),
    "BertProcessing": change("post_processor", {"type": "BertProcessing", "sep": ["a", 0], "cls": ["b", 1]}),
}


@pytest.mark.parametrize("reason", REFUSED)
@pytest.mark.parametrize("level", LEVELS)
def test_what_cannot_be_read_exactly_is_refused_with_the_name_of_the_file(reason, level, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(REFUSED[reason](json.loads(train("gpt2").to_str()))), encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        LEVELS[level].load(path)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"null", b'{"model": {"type": "BPE"}}'])
def test_a_damaged_or_missing_file_is_refused(level, content, tmp_path):
    load = LEVELS[level].load
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load(tmp_path)
    with pytest.raises(UserError, match="missing"):
        load(tmp_path / "nowhere")
    (tmp_path / "vocab.json").write_text('{"a": 0}', encoding="utf-8")
    with pytest.raises(UserError, match="merges"):
        load(tmp_path / "vocab.json")
