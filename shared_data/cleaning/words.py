"""What the rules, the shingles and the statistics count: words, and characters where a script puts no spaces between words.

Chinese, Japanese, Thai, Lao, Khmer and Burmese are written without spaces between words, so there a unit is one character with the marks
above and below it. A text may mix scripts: each part is cut by its own. Theory: `cleaning.md`.

    uv run python -c "from shared_data.cleaning.words import split_words; print(split_words('宝玉 said: don\\'t! กำลัง हिन्दी'))"
"""

import re

import regex

UNSPACED_SCRIPTS = ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")

# The sign that lengthens a vowel in Katakana belongs to no script. Vowel signs and tones are marks (M), which Python's `\w` is not;
# the two joiners stand inside words of Persian and of Indian languages.
_UNSPACED = r"[\p{L}\p{N}&&[" + "".join(rf"\p{{{script}}}" for script in UNSPACED_SCRIPTS) + "ーｰ]]"
_LETTER = rf"[[\p{{L}}\p{{N}}\p{{M}}_\u200c\u200d]--{_UNSPACED}]"
_CHARACTER = rf"{_UNSPACED}\p{{M}}*"

_WORD = regex.compile(rf"{_CHARACTER}|{_LETTER}+(?:['’]{_LETTER}+)*", regex.V1)
_PIECE = regex.compile(
    rf"{_CHARACTER}[^\s\p{{L}}\p{{N}}\p{{M}}_]*|(?:(?!{_UNSPACED})\S)+", regex.V1
)  # with the punctuation behind it
_ASCII_WORD = re.compile(r"\w+(?:'\w+)*", re.ASCII)
_FIRST_UNSPACED = regex.compile(_UNSPACED, regex.V1)
_MARK = regex.compile(r"\p{M}")
_HANGUL = re.compile("[가-힣]")


def split_words(text: str) -> list[str]:
    """The words of a text without punctuation; in scripts without spaces between words, the characters.

    >>> split_words("It's 宝玉, 12 กำ!")
    ["It's", '宝', '玉', '12', 'ก', 'ำ']
    """
    return _ASCII_WORD.findall(text) if text.isascii() else _WORD.findall(text)


def split_at_spaces(text: str) -> list[str]:
    """The same with punctuation and signs, as what stands between two spaces is counted by Gopher.

    >>> split_at_spaces("a -- b? 是！”他说")
    ['a', '--', 'b?', '是！”', '他', '说']
    """
    return _PIECE.findall(text) if has_characters(text) else text.split()


def has_characters(text: str) -> bool:
    """Whether a text holds a character of a script without spaces between words."""
    return not text.isascii() and _FIRST_UNSPACED.search(text) is not None


def is_character(unit: str) -> bool:
    """Whether a unit of `split_words` is a character, not a word."""
    return not unit.isascii() and _FIRST_UNSPACED.match(unit) is not None


def are_characters(units: list[str]) -> bool:
    """Whether the units of a text are characters rather than words, by the larger number."""
    return 2 * sum(map(is_character, units)) > len(units)


def letters(word: str) -> int:
    """The length of a word: marks do not count, and a syllable of Hangul, written as one sign of two or three letters, counts as two.

    >>> letters("café"), letters("हिन्दी"), letters("학교")
    (4, 3, 4)
    """
    if word.isascii():
        return len(word)
    return len(_MARK.sub("", word)) + len(_HANGUL.findall(word))
