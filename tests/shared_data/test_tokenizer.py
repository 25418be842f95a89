"""What the shared tokenizer promises for itself: fast ways equal slow ones, and memory stays bounded."""

import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_data.errors import UserError
from shared_data.tokenizer import tokenizer as module
from shared_data.tokenizer.byte_level import visible
from shared_data.tokenizer.split_patterns import PATTERNS, PatternSplitter, cut_long_text
from shared_data.tokenizer.training import count_words
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe

ASCII = st.text(st.characters(max_codepoint=127), max_size=30) | st.lists(
    st.sampled_from(["'s", "'LL", " ", "\n", "\r\n", "\x1c", "\t", "1234", "word", "Word", "--", "."]),
    max_size=12,
).map("".join)


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=ASCII)
def test_the_ascii_twin_of_a_pattern_cuts_where_the_pattern_cuts(pattern, text):
    splitter = PatternSplitter(PATTERNS[pattern])
    assert splitter._ascii_pattern is not None
    assert splitter.split(text) == [text[start:stop] for start, stop, _ in splitter.spans(text)]


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=ASCII | st.text(max_size=40), size=st.integers(1, 20))
def test_a_text_cut_into_parts_has_the_same_pieces(pattern, text, size):
    split = PatternSplitter(PATTERNS[pattern]).split
    text = f"{text} and then {text} the end of it"
    parts = list(cut_long_text(text, size))
    assert "".join(parts) == text
    assert [piece for part in parts for piece in split(part)] == split(text)
    assert len(parts) > 1


def test_training_keeps_the_words_and_not_the_texts():
    text = "Mia found the red ball and gave it to Tom. " * 500

    def stream(number: int) -> Iterator[str]:
        for _ in range(number):
            yield "".join(text)

    peaks = []
    for number in (3, 30):
        tracemalloc.start()
        count_words(stream(number), "gpt4")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_the_memory_of_words_is_bounded_and_changes_no_id(monkeypatch):
    tokens = train_bpe(["some words to learn from, some words to forget"], 300)
    text = " ".join(f"word{number}" for number in range(50)) + " " + "x" * 300
    expected = tokens.encode(text)
    assert "x" * 300 not in tokens._words
    monkeypatch.setattr(module._WordMemory, "LARGEST", 10)
    again = train_bpe(["some words to learn from, some words to forget"], 300)
    assert again.encode(text) == again.encode(text) == expected
    assert len(again._words) == 10
    monkeypatch.setattr(module._WordMemory, "CHARACTERS", 10)
    third = train_bpe(["some words to learn from, some words to forget"], 300)
    for word in (" long", " longer", " longest"):
        third.encode(word)
    assert list(third._words) == [" long", " longer"]


@pytest.mark.parametrize("pattern", [r"\p{N}{1,3}+", r"[a-z&&b]", r"\w+", "(", r"\p{Nonsense}"])
def test_a_pattern_that_engines_read_differently_is_refused(pattern):
    with pytest.raises(UserError, match="split pattern"):
        PatternSplitter(pattern)


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (b" caf", "␣caf"),
        ("é 狐\n\t".encode(), "é␣狐⏎⇥"),
        (b" \xe4\xb8", "␣<0xE4><0xB8>"),  # two of the three bytes of a character
        (b"\xa9", "<0xA9>"),
        (b"\x00\x7f", "<0x00><0x7F>"),
        ("\u200b\N{NO-BREAK SPACE}".encode(), "<0xE2><0x80><0x8B><0xC2><0xA0>"),
        (b"", ""),
    ],
)
def test_a_token_is_shown_as_text_and_half_a_character_as_its_bytes(token, shown):
    assert visible(token) == shown
