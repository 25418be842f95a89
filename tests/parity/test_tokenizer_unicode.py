"""Every character of Unicode is a letter, digit or space to us where it is one to `tokenizers`."""

import unicodedata

import pytest
import regex
from tokenizers import Regex, normalizers, pre_tokenizers

import shared_data.tokenizer.pre_tokenizer as v2_pre_tokenizer
import shared_data.tokenizer.pre_tokenizer as v3_pre_tokenizer
import shared_data.tokenizer.split_patterns as v2
import shared_data.tokenizer.split_patterns as v3
import shared_data.tokenizer.unicode_versions as v2_unicode
import shared_data.tokenizer.unicode_versions as v3_unicode

EVERYTHING = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)


# The characters that take part in normalisation, and some of the others.
NORMALISED = "".join(
    character
    for number, character in enumerate(EVERYTHING)
    if number % 97 == 0
    or not unicodedata.is_normalized("NFD", character)
    or character in v2_unicode.NEWER_COMBINING
    or regex.match(r"\p{M}", character)
)


def library_split(pattern: str, text: str) -> list[str]:
    return [piece for piece, _ in pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(text)]


def test_categories_hold_the_same_characters():
    # One pass for all of them: a run of characters of one category is one piece.
    pattern = r"\p{Lu}+|\p{Lt}+|\p{L}+|\p{Nd}+|\p{N}+|\p{P}+|\p{S}+|\p{M}+|\p{Z}+"
    expected = library_split(pattern, EVERYTHING)
    assert v2.PatternSplitter(pattern).split(EVERYTHING) == expected
    assert v3.PatternSplitter(pattern).split(EVERYTHING) == expected
    # Without the list of newer characters they would not.
    assert v2.PatternSplitter(pattern, newer=frozenset()).split(EVERYTHING) != expected


@pytest.mark.parametrize("pattern", v2.PATTERNS)
def test_patterns_cut_all_characters_alike_whatever_stands_between(pattern):
    for text in (EVERYTHING[::2], "a".join(EVERYTHING[::9]), "' ".join(EVERYTHING[1::23])):
        expected = library_split(v2.PATTERNS[pattern], text)
        assert v2.PatternSplitter(v2.PATTERNS[pattern]).split(text) == expected
        assert v3.PATTERNS[pattern] == v2.PATTERNS[pattern]


def test_digits_of_the_digits_step_are_the_same():
    definition = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": False}, {"type": "ByteLevel"} | NO_OPTIONS],
    }
    expected = [piece for piece, _ in pre_tokenizers.Digits(False).pre_tokenize_str(EVERYTHING)]
    assert v2_pre_tokenizer.PreTokenizer(definition).split(EVERYTHING) == expected
    assert v3_pre_tokenizer.PreTokenizer(definition).split(EVERYTHING) == expected


NO_OPTIONS = {"add_prefix_space": False, "use_regex": False}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_normal_forms_of_every_character_between_marks_are_the_same(form):
    reference = getattr(normalizers, form)().normalize_str
    # After a letter and before marks of two classes, so that it can compose, decompose and change places.
    for before, after in (("a\u0345", ""), ("e", "\u0301\u0323"), ("\U00011935", "\u0334")):
        text = "".join(f"{before}{character}{after}\n" for character in NORMALISED)
        expected = reference(text)
        assert v2_unicode.normalize(form, text) == expected
        assert v3_unicode.normalize(form, text) == expected


def test_the_lists_of_both_levels_are_one():
    assert v2_unicode.NEWER_CHARACTERS == v3_unicode.NEWER_CHARACTERS
    assert v2_unicode.NEWER_COMBINING == v3_unicode.NEWER_COMBINING
