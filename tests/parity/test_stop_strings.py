"""Stop strings end a sequence where transformers' criterion does, however the tokens cut them, and printed text ends before them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, StopStringCriteria

from shared_data.errors import UserError
from shared_data.inference.stop_strings import StopCriteria, TextBeforeStop, text_before_stop
from shared_data.inference.streaming import TextStream
from shared_data.tokenizer.tokenizer import Tokenizer
from tests.parity.test_generate import FREE, GENERATORS, models
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe
from v2_handwritten.data_pipeline.tokenizer.tokenizer import load_tokenizer
from v2_handwritten.inference.generate import generate
from v2_handwritten.models.transformer import ModelConfig, new_model
from v3_numpy_deep.inference.generate import generate as generate3
from v3_numpy_deep.models.transformer import new_model as new_model3

# Bytes, pieces of words, and tokens that end inside a character: "é" c3 a9, "三" e4 b8 89, "🙂" f0 9f 99 82.
TEXTS = ["the cat stopped at the top, and stops. ", "Zoë ate 三 crêpes 🙂. Question: who?\n\nAnswer: Zoë\n\n"]
ALPHABET = "stop é三🙂\n:Qax"


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """Ours, and the library's of the same file."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(TEXTS * 3, 300, special_tokens=["<|endoftext|>", "<|im_end|>"]).save(folder)
    return load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


def agree(tokenizers: tuple[Tokenizer, Any], ids: list[int], stop_strings: list[str]) -> bool:
    """What both say of the last token, which must be the same."""
    ours, library = tokenizers
    ends = StopCriteria([], stop_strings, ours).are_met(ids)
    assert ends == bool(StopStringCriteria(library, stop_strings)(torch.tensor([ids]), None)[0]), (
        ids,
        stop_strings,
    )
    return ends


def test_a_stop_string_may_begin_and_end_inside_a_token(tokenizers: tuple[Tokenizer, Any]) -> None:
    """The cases that transformers documents, and characters that are cut."""
    ours, _ = tokenizers
    cases = [
        ("las", "topper", "stop", True),
        ("s", "topped", "stop", True),
        ("stop", "at", "stop", False),  # it ended before the last token
        ("a", "stop", "stop", True),
        ("", "🙂", "🙂", True),
        ("sto", "a", "stop", False),
        ("a", "<|im_end|>", "<|im_end|>", True),
    ]
    for before, last, stop, wanted in cases:
        ids = [*ours.encode(before), *ours.encode(last)]
        # The last piece may be several tokens: the string ends inside one of them.
        ends = [agree(tokenizers, ids[:length], [stop]) for length in range(1, len(ids) + 1)]
        assert any(ends[len(ours.encode(before)) :]) == wanted, (before, last)


@settings(max_examples=150, deadline=None)
@given(
    ids=st.lists(st.integers(0, 299), min_size=1, max_size=12),
    text=st.text(ALPHABET, max_size=10),
    stops=st.lists(st.sampled_from(["stop", "\n\n", "é", "三 ", "🙂", ":Q", "s", "op a", "tops"]), min_size=1, max_size=3),
)  # fmt: skip
def test_any_ids_end_where_the_library_says(
    tokenizers: tuple[Tokenizer, Any], ids: list[int], text: str, stops: list[str]
) -> None:
    """Any tokens in a row, also bytes that are no text, with a text in front that makes matches likely."""
    ours, _ = tokenizers
    ids = [*ours.encode(text), *ids]
    for length in range(1, len(ids) + 1):
        agree(tokenizers, ids[:length], stops)


@settings(max_examples=150, deadline=None)
@given(text=st.text(ALPHABET, max_size=30), stop=st.text(ALPHABET, min_size=1, max_size=4), cut=st.data())
def test_a_text_cut_into_any_tokens_ends_at_the_first_that_completes_a_stop_string(
    tokenizers: tuple[Tokenizer, Any], text: str, stop: str, cut: st.DataObject
) -> None:
    """Bytes one by one, or merged: the ids up to the end hold the stop string exactly where the text first does."""
    ours, _ = tokenizers
    pieces = [text[: (place := cut.draw(st.integers(0, len(text))))], text[place:]]
    byte_ids = {ours.decode_bytes([id]): id for id in range(300)}
    spelled = [byte_ids[bytes([byte])] for byte in pieces[0].encode()] + ours.encode(pieces[1])
    criteria = StopCriteria([], [stop], ours)
    end = next((n for n in range(1, len(spelled) + 1) if criteria.are_met(spelled[:n])), None)
    if stop not in text:
        assert end is None
    else:
        assert end is not None
        assert stop.encode() in ours.decode_bytes(spelled[:end])
        assert stop.encode() not in ours.decode_bytes(spelled[: end - 1])


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(ALPHABET, max_size=30), stops=st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3)
)
def test_a_stream_writes_the_text_before_the_stop_string(
    tokenizers: tuple[Tokenizer, Any], text: str, stops: list[str]
) -> None:
    """Of a sequence that ended where a stop string was completed: what was streamed is what stands before it, and all without one."""
    ids, criteria = tokenizers[0].encode(text), StopCriteria([], stops, tokenizers[0])
    end = next((n for n in range(1, len(ids) + 1) if criteria.are_met(ids[:n])), len(ids))
    written = tokenizers[0].decode(ids[:end])
    places = [written.find(stop) for stop in stops if stop in written]
    for tokenizer in tokenizers:
        stream = TextStream(tokenizer, stops)
        pieces = [stream.add(id) for id in ids[:end]]
        before = "".join(pieces) + stream.finish()
        assert before == written[: min(places, default=len(written))] == text_before_stop(written, stops)
        assert stream.before_stop.stopped == bool(places)


def test_what_may_become_a_stop_string_is_held_back() -> None:
    stream = TextBeforeStop(["\n\nQ:", "END"])
    assert [stream.add(piece) for piece in ("The E", "nd is n", "ear.\n", "\nQ", ": Who")] == [
        "The ", "End is n", "ear.", "", "",
    ]  # fmt: skip
    assert stream.stopped
    assert stream.finish() == stream.add("more") == ""
    assert text_before_stop("The E", ["END"]) == "The E", "at the end nothing is held back"


@pytest.fixture(scope="module")
def talkers(
    tokenizers: tuple[Tokenizer, Any], tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Any, Any, Any]]:
    """(generate, model, tokenizer) of each level: random weights over the tokenizer's vocabulary, in float64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = ModelConfig(vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128, initializer_range=0.5)  # fmt: skip
    ours = new_model(config).double()
    library = LlamaForCausalLM(LlamaConfig(**config.to_hf())).double().eval()
    library.load_state_dict(ours.state_dict())
    return [
        (GENERATORS[0], library, tokenizers[1]),
        (generate, ours, tokenizers[0]),
        (generate3, new_model3(config).to(np.float64), tokenizers[0]),
    ]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generating_stops_at_the_same_token_at_every_level(
    talkers: list[tuple[Any, Any, Any]], options: dict[str, Any]
) -> None:
    """In a padded batch of which some rows end early; tokens after an end are neither returned nor passed on."""
    ours = talkers[1][2]
    inputs = [ours.encode(text) for text in ("the cat", "Question: who?", "Zoë")]
    free = talkers[1][0](talkers[1][1], inputs, max_new_tokens=16, eos_token_id=[], **options)
    stops = [text for text in (readable_middle(ours, ids[3:]) for ids in free) if text][:1]
    assert stops, "some row should write characters"
    results = []
    for level_generate, model, tokenizer in talkers:
        received: list[list[int]] = [[], [], []]
        ids = level_generate(
            model,
            inputs,
            max_new_tokens=16,
            eos_token_id=[],
            stop_strings=stops,
            tokenizer=tokenizer,
            on_token=lambda row, id, received=received: received[row].append(id),
            **options,
        )
        assert received == ids
        results.append(ids)
    assert results[0] == results[1] == results[2]
    assert min(map(len, results[0])) < 16 == max(map(len, results[0]))


def readable_middle(tokenizer: Tokenizer, ids: list[int]) -> str:
    """A text of two characters that the tokens spell, from inside them."""
    text = tokenizer.decode(ids)
    return next((text[i : i + 2] for i in range(1, len(text) - 1) if "\ufffd" not in text[i : i + 2]), "")


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_strings": ["a"]}, "needs the texts of tokens; pass tokenizer"),
        ({"stop_strings": [""]}, r"stop_strings is \[''\]; pass a list of texts that are not empty"),
    ],
)
def test_stop_strings_that_cannot_be_are_one_line(level: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GENERATORS[level](models("gpt2")[level], [[5]], max_new_tokens=2, **FREE | options)


def test_a_tokenizer_without_bytes_is_one_line(tokenizers: tuple[Tokenizer, Any]) -> None:
    with pytest.raises(
        UserError, match="which bytes a token stands for; pass that of this level's load_tokenizer"
    ):
        StopCriteria([], ["a"], tokenizers[1])


def test_byte_tokens_of_sentencepiece_are_bytes(tmp_path: Path) -> None:
    """`<0xC3>` `<0xA9>` are "é", and `▁` is a space: a stop string may begin with it."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"<unk>": 256, "▁": 257, "a": 258, "▁a": 259}
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    decoder = {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    model = {
        "type": "BPE",
        "vocab": vocab,
        "merges": [["▁", "a"]],
        "byte_fallback": True,
        "unk_token": "<unk>",
    }
    parts = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor"))
    definition = {"version": "1.0", "added_tokens": [], **parts, "decoder": decoder, "model": model}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    both = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert agree(both, [258, 0xC3, 0xA9], ["é"])
    assert not agree(both, [258, 0xC3], ["é"])
    assert agree(both, [258, 259], [" a"])
    assert agree(both, [0xC3, 0xA9, 259], ["é a"])
