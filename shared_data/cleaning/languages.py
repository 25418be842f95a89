"""Which language a document is in: its script decides, and where languages share a script, their function words do.

The words that connect others in a sentence (the, und, que) are few and frequent, so the list that covers the most words of a text
names its language. That takes no model, and is sure only where the list is long enough and the text more than a line. Theory and
limits: `cleaning.md`.

    uv run python -c "from shared_data.cleaning.languages import language_of; print(language_of('Der Hund und die Katze schlafen.'))"
"""

from collections import Counter

import regex

from shared_data.cleaning.word_lists import FUNCTION_WORDS, LANGUAGES_OF_SCRIPT
from shared_data.cleaning.words import split_words

UNKNOWN = "unknown"
_JAPANESE_KANA = 0.1  # of the characters; a Chinese text quotes fewer, a Japanese one has half
_ENGLISH_SHARE = 0.2  # of the words: with that many function words a text is English, whatever else it holds
_LEAST_SHARE = 0.1  # of another list; fewer of its words stand in any text by chance
_FOREIGN_WORDS = 0.05  # of the words: with more that have letters beyond a to z, a text of few function words is not English
_MOST_UNITS = 1000  # of a text are asked

_SCRIPT = regex.compile("|".join(rf"(?P<{script}>\p{{{script}}})" for script in LANGUAGES_OF_SCRIPT))


def language_of(text: str) -> str:
    """The code of a document's language, one of `LANGUAGES` in `word_lists.py`, or "unknown".

    A Latin text without function words of any list is English where it is written in the letters a to z, and else unknown.

    >>> language_of("It is the cat of my sister."), language_of("吾輩は猫である。"), language_of("我是猫。")
    ('en', 'ja', 'zh')
    """
    units = split_words(text[: 20 * _MOST_UNITS].lower())[:_MOST_UNITS]
    script = _script_of(units)
    if script is None:
        return UNKNOWN
    first, *others = LANGUAGES_OF_SCRIPT[script]
    if not others or (first == "en" and function_word_share(units, "en") >= _ENGLISH_SHARE):
        return first
    shares = {code: function_word_share(units, code) for code in others}
    best = max(shares, key=lambda code: shares[code])
    if shares[best] >= _LEAST_SHARE and shares[best] > function_word_share(units, first):
        return best
    return UNKNOWN if first == "en" and _has_foreign_letters(units) else first


def function_word_share(words: list[str], code: str) -> float:
    """The part of the words, in lower case, that are function words of a language."""
    known = FUNCTION_WORDS[code]
    return sum(word in known for word in words) / max(1, len(words))


def _script_of(units: list[str]) -> str | None:
    """The script of most words or characters; Japanese is known by its syllables among the Chinese characters."""
    counts = Counter({"Latin": sum(unit.isascii() and unit[0].isalpha() for unit in units)})
    others = (_SCRIPT.search(unit) for unit in units if not unit.isascii())
    counts.update(match.lastgroup for match in others if match is not None)
    if not counts.total():
        return None
    kana = counts["Hiragana"] + counts["Katakana"]
    if kana > _JAPANESE_KANA * (kana + counts["Han"]):
        counts["Hiragana"] = kana + counts.pop("Han", 0)
    return max(counts, key=lambda script: counts[script])


def _has_foreign_letters(words: list[str]) -> bool:
    foreign = sum(any(not c.isascii() and c.isalpha() for c in word) for word in words)
    return foreign > _FOREIGN_WORDS * len(words)
