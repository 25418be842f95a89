"""Two lines of the Analects and a German sentence: what the rules count, as in cleaning.md."""

from shared_data.cleaning.filters import duplicate_ngram_characters, rejection_reason, top_ngram_characters
from shared_data.cleaning.languages import function_word_share, language_of
from shared_data.cleaning.word_lists import FUNCTION_WORDS
from shared_data.cleaning.words import split_at_spaces, split_words
from shared_data.settings import CleaningSettings
from tests.worked import agrees

PAGE = "shared_data/cleaning/cleaning.md"
ANALECTS = "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？"
GERMAN = "Der Hund und die Katze schlafen im Haus."
CODES = ("en", "de", "nl", "fr")


def test_the_rules_count_characters_where_there_are_no_spaces() -> None:
    units = split_words(ANALECTS)
    assert "".join(units) == "学而时习之不亦说乎有朋自远方来不亦乐乎"
    assert split_at_spaces(ANALECTS)[3:6] == ["习", "之，", "不"]
    rows = [[top_ngram_characters(units, n), duplicate_ngram_characters(units, n)] for n in (1, 2, 3)]
    agrees(PAGE, "$n$", [[len(units), *row] for row in rows])
    assert rejection_reason(ANALECTS, CleaningSettings()) is None


def test_the_list_with_the_most_words_names_the_language() -> None:
    words = split_words(GERMAN.lower())
    agrees(
        PAGE, "word", [*([word in FUNCTION_WORDS[code] for code in CODES] for word in words), shares(words)]
    )
    assert language_of(GERMAN) == "de"


def shares(words: list[str]) -> list[float]:
    return [function_word_share(words, code) for code in CODES]
