"""BPE as SentencePiece's converts have it: characters, spaces written `▁`, byte tokens for what the vocabulary lacks.

Small tokenizers are built here with the library, in the styles of Llama-2, Mistral and Gemma and with every option of each step; any
text gets the library's ids and comes back as the library's text.
"""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

import v2_handwritten.data_pipeline.tokenizer.tokenizer as v2
import v3_numpy_deep.data_pipeline.tokenizer.tokenizer as v3
from shared_data.errors import UserError
from shared_data.inference.streaming import TextStream

LEVELS = {"v2": v2.Tokenizer, "v3": v3.Tokenizer}
TEXTS = 2_000

CORPUS = [
    "The quick brown fox can't jump over 12 lazy dogs;  they're asleep.\n\n    Indented   code: x = y1 + 2024;\n",
    "Ünïcödé naïve café – “quotes” … 東京都は日本の首都です。 Привет, мир! 🙂🙂 the cat, the hat, the end of the day",
    " leading and trailing spaces,\ttabs\tand the other theory of the thing \n",
] * 3
WORDS = re.compile("▁+[^▁]*|[^▁]+")
SPECIAL = ["<unk>", "<s>", "</s>"]

STRIP = decoders.Strip(" ", 1, 0)
SPACES = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
LLAMA2 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def metaspace(scheme: str, split: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)


def chain(*steps: normalizers.Normalizer) -> normalizers.Normalizer:
    return normalizers.Sequence(list(steps))


# Style -> normalizer, pre-tokenizer, decoder.
STYLES = {
    "llama2": (LLAMA2, None, decoders.Sequence([*SPACES, STRIP])),
    "llama, first word": (None, metaspace("first", False), decoders.Sequence([*SPACES, STRIP])),
    "llama, every part": (None, metaspace("always", False), decoders.Sequence([*SPACES, STRIP])),
    "words, first": (None, metaspace("first", True), decoders.Metaspace(prepend_scheme="first")),
    "words, always": (None, metaspace("always", True), decoders.Metaspace(prepend_scheme="always")),
    "words, never": (None, metaspace("never", True), decoders.Metaspace(prepend_scheme="never")),
    "gemma": (
        normalizers.Replace(" ", "▁"),
        pre_tokenizers.Split(" ", "merged_with_previous"),
        decoders.Sequence(SPACES),
    ),
    "nothing": (None, None, None),
    "fuse only": (None, None, decoders.Fuse()),
    "forms": (
        chain(normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(r" {2,}"), " ")),
        metaspace("always", False),
        decoders.Sequence(SPACES),
    ),
    "nfkd": (normalizers.NFKD(), metaspace("first", True), decoders.Sequence([*SPACES, STRIP])),
    "nfd": (
        chain(normalizers.NFD(), normalizers.Strip(left=False)),
        metaspace("first", True),
        decoders.Sequence(SPACES),
    ),
    "empty matches": (normalizers.Replace(Regex("x*"), "-"), metaspace("never", True), decoders.Fuse()),
    "digits and spaces": (
        normalizers.NFC(),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), metaspace("first", False)]),
        decoders.Sequence([*SPACES, decoders.Strip(" ", 1, 0)]),
    ),
    "each token stripped": (None, metaspace("never", True), decoders.Strip("▁", 2, 0)),
}  # fmt: skip


def train(
    style: str, byte_fallback: bool = True, across_spaces: bool = False, **options
) -> tokenizers.Tokenizer:
    """A small tokenizer in a style; it knows few characters, so that many texts need its byte tokens.

    Its tokens are learned from words with the space before them, or (`across_spaces`) from whole texts.
    """
    model = models.BPE(unk_token="<unk>" if byte_fallback else None, byte_fallback=byte_fallback)
    backend = tokenizers.Tokenizer(model)
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*SPECIAL, *byte_tokens],
        initial_alphabet=["▁"],
        limit_alphabet=60,
        show_progress=False,
    )
    written = [text.replace(" ", "▁") for text in CORPUS]
    words = written if across_spaces else [word for text in written for word in WORDS.findall(text)]
    backend.train_from_iterator(words, trainer)
    for step, value in zip(("normalizer", "pre_tokenizer", "decoder"), STYLES[style], strict=True):
        if value is not None:
            setattr(backend, step, value)
    definition = json.loads(backend.to_str())
    # The trainer calls the byte tokens special; in real files they are tokens of the vocabulary and nothing else.
    definition["added_tokens"] = [
        token for token in definition["added_tokens"] if token["content"] in SPECIAL
    ]
    definition["model"] |= {"fuse_unk": True} | options
    return tokenizers.Tokenizer.from_str(json.dumps(definition))


def load(backend: tokenizers.Tokenizer, folder: Path) -> dict[str, object]:
    backend.save(str(folder / "tokenizer.json"))
    return {name: level.load(folder) for name, level in LEVELS.items()}


PIECES = [
    *" \n\t\r\x1c\x85\xa0\u3000\0/2Ⅷ²½٣éǅʰﬁ日本都🙂\u0301\u0323\u0600\u0897\ua7ce\u32ff\U00010781\U00011938▁x",
    "the", " the", "  ", "   ", "▁▁", "Don't", "e\u0301", "한글", "cat, ", "2024", "東京", "👩‍👩‍👧", "Привет", "q", "Z",
    "<s>", "</s>", " <s> ", "<unk>", "<0x0A>", "<x>", "end", "",
]  # fmt: skip


def texts(seed: int, number: int = TEXTS) -> list[str]:
    """Random texts of the pieces above, the empty one among them."""
    draw = random.Random(seed)
    return ["", " ", *("".join(draw.choices(PIECES, k=draw.randint(1, 12))) for _ in range(number - 2))]


def check(backend: tokenizers.Tokenizer, tokens: dict[str, object], texts: list[str], **options) -> None:
    """Ids and texts of all levels are the library's."""
    for text in texts:
        expected = backend.encode(text, add_special_tokens=False).ids
        for name, level in tokens.items():
            assert level.encode(text, **options) == expected, (name, text)
            for skip in (False, True):
                decoded = backend.decode(expected, skip_special_tokens=skip)
                assert level.decode(expected, skip) == decoded, (name, text)


@pytest.mark.parametrize("style", STYLES)
def test_two_thousand_texts_get_the_ids_and_texts_of_the_library(style, tmp_path):
    backend = train(style)
    backend.add_tokens([AddedToken("<x>", normalized=False), AddedToken("end", normalized=True, lstrip=True)])
    tokens = load(backend, tmp_path)
    check(backend, tokens, texts(seed=1))
    backend.encode_special_tokens = True
    check(backend, tokens, texts(seed=2, number=200), allow_special=False)


@pytest.mark.parametrize("style", ["llama2", "gemma", "words, first"])
def test_tokens_across_spaces_are_found_where_the_text_is_one_word(style, tmp_path):
    backend = train(style, across_spaces=True)
    tokens = load(backend, tmp_path)
    across = [token for token in backend.get_vocab() if "▁" in token.lstrip("▁")]
    assert across
    check(backend, tokens, [*texts(seed=3, number=500), *CORPUS, "".join(CORPUS)])
    if style != "words, first":
        assert set(backend.encode(CORPUS[0]).tokens) & set(across)


@pytest.mark.parametrize("style", ["llama2", "words, never"])
@pytest.mark.parametrize(
    "options",
    [
        {"ignore_merges": True},
        {"byte_fallback": False, "unk_token": None},
        {"byte_fallback": False, "unk_token": "<unk>", "fuse_unk": True},
        {"byte_fallback": False, "unk_token": "<unk>", "fuse_unk": False},
        {"unk_token": None},
    ],
)
def test_each_option_of_the_model_does_what_it_does_in_the_library(style, options, tmp_path):
    definition = json.loads(train(style, **options).to_str())
    vocab = definition["model"]["vocab"]
    vocab["▁The▁end"] = vocab["▁qqq"] = len(vocab)  # tokens that no merge makes
    vocab["▁qqq"] += 1
    backend = tokenizers.Tokenizer.from_str(json.dumps(definition))
    tokens = load(backend, tmp_path)
    check(backend, tokens, [*texts(seed=4, number=500), "The end", " qqq", "a qqq", "ббб жж б"])
    word = "qqq" if style == "llama2" else " qqq"  # the first of the two puts a space before it
    assert (backend.encode(word).tokens == ["▁qqq"]) == bool(options.get("ignore_merges"))


def test_a_template_goes_around_a_text_on_request(tmp_path):
    backend = train("llama, first word")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    for level in load(backend, tmp_path).values():
        assert level.encode("the cat", add_special_tokens=True) == backend.encode("the cat").ids
        assert level.encode("", add_special_tokens=True) == [1, 2]
        assert level.encode_to_array(["the", ""]).tolist() == [*backend.encode("the").ids, 1, 2]


@pytest.mark.parametrize("level", LEVELS)
def test_ids_of_a_corpus_are_the_same_arrays(level, tmp_path, parity):
    backend = train("llama2")
    tokens = load(backend, tmp_path)[level]
    rows = [*CORPUS, *texts(seed=5, number=300)]
    backend.encode_special_tokens = True
    expected = [id for text in rows for id in [*backend.encode(text).ids, 2]]
    parity(
        component="tokenizer, Llama-2 file",
        quantity=f"ids of {len(rows)} texts",
        levels=f"v1-{level}",
        actual=tokens.encode_to_array(rows, end_of_text=True).astype(np.int64),
        expected=np.asarray(expected, np.int64),
        tolerance=0,
    )


@pytest.mark.parametrize("style", ["llama2", "llama, first word", "words, first", "gemma", "fuse only"])
def test_any_ids_give_the_text_of_the_library(style, tmp_path):
    backend = train(style)
    tokens = load(backend, tmp_path)
    draw = random.Random(6)
    byte_tokens = [f"<0x{byte:02X}>" for byte in "日本é\n🙂".encode()]
    for _ in range(TEXTS):
        some = draw.choices(
            [*(backend.token_to_id(token) for token in byte_tokens), *range(720)], k=draw.randint(0, 12)
        )
        for skip in (False, True):
            expected = backend.decode(some, skip_special_tokens=skip)
            assert {level.decode(some, skip) for level in tokens.values()} == {expected}


@pytest.mark.parametrize("style", ["llama2", "llama, first word", "words, first", "words, never", "gemma"])
def test_a_stream_gives_each_character_at_once_and_the_spaces_of_the_text(style, tmp_path):
    backend = train(style)
    for tokens in load(backend, tmp_path).values():
        for text in [
            *texts(seed=7, number=100),
            "Hi",
            "  two  spaces ",
            "日本 the 🙂<s> cat</s>  x",
            "<s><s> the cat",
        ]:
            ids = tokens.encode(text)
            ids = ids if len(ids) < 3 else [*ids[:-1], 10**6, ids[-1]]  # an id that no token has
            stream, pieces = TextStream(tokens), []
            for number, id in enumerate(ids, 1):
                pieces.append(stream.add(id))
                whole = tokens.decode(ids[:number], skip_special_tokens=True)
                if not whole.endswith("\ufffd"):
                    assert "".join(pieces) == whole, text
            assert "".join(pieces) + stream.finish() == tokens.decode(ids, skip_special_tokens=True)


def test_bytes_of_tokens_are_those_of_the_text_but_for_the_space_before_it(tmp_path):
    for style in ("llama2", "llama, first word", "words, always", "gemma"):
        (tmp_path / style).mkdir()
        for tokens in load(train(style), tmp_path / style).values():
            for text in [*CORPUS, "the cat", " the cat", "日本 🙂 <s> the", "<s>the cat", "", "\n", "  "]:
                ids = tokens.encode(text)
                lengths = tokens.byte_lengths_in(text, ids)
                assert lengths.sum() == len(text.encode())
                assert (lengths <= tokens.byte_lengths[ids]).all()
                if style == "gemma":  # adds no space, so that a number for each id is enough
                    assert (lengths == tokens.byte_lengths[ids]).all()
            first, *_ = tokens.encode("the")
            assert tokens.byte_lengths[first] == (3 if style == "gemma" else 4)


def test_bytes_that_a_normalizer_changed_are_no_places_in_the_text(tmp_path):
    text = "the Z\u030c the"  # two characters that NFC makes one
    for tokens in load(train("digits and spaces"), tmp_path).values():
        with pytest.raises(UserError, match=r"do not spell the text from byte 4 on \('Z\u030c the'\)"):
            tokens.byte_lengths_in(text, tokens.encode(text))


def template(ids, name="<s>"):
    """A post-processor that puts a token before the text."""
    known = {"<s>": {"id": "<s>", "ids": ids, "tokens": ["<s>"]}}
    single = [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": known}


REFUSED = {
    "byte tokens missing": ({"model": {"byte_fallback": True}}, "lacks 256 of the 256 byte tokens"),
    "Lowercase": ({"normalizer": {"type": "Lowercase"}}, "normalizer 'Lowercase' is not supported; NFC"),
    "Precompiled": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}, "'Precompiled'"),
    "Whitespace": ({"pre_tokenizer": {"type": "Whitespace"}}, "step 'Whitespace', which is not supported; Split"),
    "WordPiece decoder": ({"decoder": {"type": "WordPiece"}}, "decoder 'WordPiece' is not supported; ByteLevel"),
    "scheme": ({"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "last"}}, "always, first or never"),
    "two characters": ({"pre_tokenizer": {"type": "Metaspace", "replacement": "__"}}, "one character"),
    "removed start": (
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": False},
         "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}},
        "may remove the beginning",
    ),
    "empty Replace": ({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}}, "empty pattern"),
    "Replace by a number": ({"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": 1}}, "not a text"),
    "huge id": ({"model": {"vocab": {"a": 10**12}}}, r"model\.vocab\.a is 1000000000000, not"),
    "id beyond 31 bits": ({"model": {"vocab": {"a": 2**31 + 1}}}, r"model\.vocab\.a is -?\d+, not"),
    "negative id": ({"model": {"vocab": {"a": -1}}}, r"model\.vocab\.a is -?\d+, not"),
    "one id twice": ({"model": {"vocab": {"a": 0, "b": 0}}}, "'a' and 'b', two tokens, have the same id"),
    "huge added id": ({"added_tokens": [{"id": 10**12, "content": "<x>"}]}, r"added_tokens\.0\.id is 1000000000000, not"),
    "merge of unknown tokens": ({"model": {"merges": [["q", "w"]]}}, "which is not in the vocabulary"),
    "template of a huge id": ({"post_processor": template([10**12])}, r"special_tokens\.<s>\.ids\.0 is 1000000000000, not"),
    "template of a negative id": ({"post_processor": template([-1])}, r"special_tokens\.<s>\.ids\.0 is -1, not"),
    "template of an id without a token": ({"post_processor": template([9999])}, "adds the id 9999, which no token has"),
    "template of an unknown token": ({"post_processor": template([0], "<t>")}, "adds '<t>', which its special_tokens lack"),
    "template without a text": (
        {"post_processor": {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}},
        "one text and tokens around it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_read_exactly_is_one_line_that_names_the_file(reason, tmp_path):
    changes, message = REFUSED[reason]
    definition = json.loads(train("words, never", byte_fallback=False).to_str())
    for key, value in changes.items():
        definition[key] = definition[key] | value if key == "model" else value
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(definition), encoding="utf-8")
    for level in LEVELS.values():
        with pytest.raises(UserError, match=message) as caught:
            level.load(path)
        assert "tokenizer.json" in str(caught.value)
        assert "\n" not in str(caught.value)
