"""Every character of Unicode is a letter, digit or space to us where it is one to `tokenizers`."""

import unicodedata

import pytest
import regex
from tokenizers import Regex, normalizers, pre_tokenizers

from shared_data.tokenizer.pre_tokenizer import PreTokenizer
from shared_data.tokenizer.split_patterns import PATTERNS, PatternSplitter
from shared_data.tokenizer.unicode_versions import NEWER_COMPATIBILITY, normalize

EVERYTHING = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)


# The characters that take part in normalization, and some of the others.
NORMALISED = "".join(
    character
    for number, character in enumerate(EVERYTHING)
    if number % 97 == 0
    or not unicodedata.is_normalized("NFKD", character)
    or character in NEWER_COMPATIBILITY
    or regex.match(r"\p{M}", character)
)


def library_split(pattern: str, text: str) -> list[str]:
    return [piece for piece, _ in pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(text)]


def test_categories_hold_the_same_characters():
    # One pass for all of them: a run of characters of one category is one piece.
    pattern = r"\p{Lu}+|\p{Lt}+|\p{L}+|\p{Nd}+|\p{N}+|\p{P}+|\p{S}+|\p{M}+|\p{Z}+"
    expected = library_split(pattern, EVERYTHING)
    assert PatternSplitter(pattern).split(EVERYTHING) == expected
    # Without the list of newer characters they would not.
    assert PatternSplitter(pattern, newer=frozenset()).split(EVERYTHING) != expected


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_cut_all_characters_alike_whatever_stands_between(pattern):
    for text in (EVERYTHING[::2], "a".join(EVERYTHING[::9]), "' ".join(EVERYTHING[1::23])):
        expected = library_split(PATTERNS[pattern], text)
        assert PatternSplitter(PATTERNS[pattern]).split(text) == expected


def test_digits_of_the_digits_step_are_the_same():
    definition = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": False}, {"type": "ByteLevel"} | NO_OPTIONS],
    }
    expected = [piece for piece, _ in pre_tokenizers.Digits(False).pre_tokenize_str(EVERYTHING)]
    assert PreTokenizer(definition).split(EVERYTHING) == expected


NO_OPTIONS = {"add_prefix_space": False, "use_regex": False}


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_normal_forms_of_every_character_between_marks_are_the_same(form):
    reference = getattr(normalizers, form)().normalize_str
    # After a letter and before marks of two classes, so that it can compose, decompose and change places.
    for before, after in (("a\u0345", ""), ("e", "\u0301\u0323"), ("\U00011935", "\u0334")):
        text = "".join(f"{before}{character}{after}\n" for character in NORMALISED)
        expected = reference(text)
        assert normalize(form, text) == expected
