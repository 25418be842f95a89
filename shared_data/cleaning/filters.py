"""Which documents are worth training on: the heuristics of Gopher (Rae et al. 2021, appendix A.1.1 and table A1) and C4.

Each rule is one number of a document against one setting; the first that fails names the reason. The rules ask for prose:
enough words of usual length, letters rather than symbols, lines that are not a list, little repetition, one of the languages. What
they count are words, or characters where a script has no spaces (`words.py`); the rules about function words are for English only.
Theory: `cleaning.md`. Counting is plain Python: over the hundred words of a document, a set of tuples is faster than arrays.

    uv run python -c "from shared_data.cleaning.filters import rejection_reason; \
from shared_data.settings import CleaningSettings; print(rejection_reason('buy now ' * 50, CleaningSettings()))"
"""

from collections import Counter
from collections.abc import Collection

from shared_data.cleaning.languages import function_word_share, language_of
from shared_data.cleaning.word_lists import GOPHER_STOP_WORDS
from shared_data.cleaning.words import are_characters, is_character, letters, split_at_spaces, split_words
from shared_data.settings import CleaningSettings

REASONS = (
    "too_few_words",
    "too_many_words",
    "word_length",
    "symbols",
    "not_alphabetic",
    "bullet_lines",
    "ellipsis_lines",
    "duplicate_lines",
    "other_language",
    "stop_words",
    "function_words",
    "top_ngram",
    "duplicate_ngrams",
)
_FEWEST_LINES = 3  # a share of fewer says nothing: a paragraph may well end in an ellipsis
_BULLETS = ("•", "‣", "- ", "* ", "– ")


def rejection_reason(
    text: str, settings: CleaningSettings, languages: Collection[str] | None = None
) -> str | None:
    """The rule a document fails first, one of `REASONS`, or None if it is good; cheap rules come first.

    languages: the codes to keep; None keeps every language.
    """
    reason = _reason_of_words(text, split_at_spaces(text), settings) or _reason_of_lines(text, settings)
    if reason is not None:
        return reason
    language, tokens = language_of(text), split_words(text.lower())
    if languages is not None and language not in languages:
        return "other_language"
    if language == "en":
        if len(GOPHER_STOP_WORDS.intersection(tokens)) < settings.min_stop_words:
            return "stop_words"
        if function_word_share(tokens, "en") < settings.min_language_ratio:
            return "function_words"
    return _reason_of_repetition(tokens, settings)


def _reason_of_words(text: str, words: list[str], settings: CleaningSettings) -> str | None:
    if len(words) < settings.min_words:
        return "too_few_words"
    if len(words) > settings.max_words:
        return "too_many_words"
    if not words:
        return None
    if not are_characters(words):  # of a text in characters the few words have no usual length
        lengths = [letters(word) for word in words if not is_character(word)]
        mean_length = sum(lengths) / len(lengths)
        if not settings.min_mean_word_length <= mean_length <= settings.max_mean_word_length:
            return "word_length"
    symbols = text.count("#") + text.count("…") + text.count("...")
    if symbols > settings.max_symbol_ratio * len(words):
        return "symbols"
    alphabetic = sum(word.isalpha() or any(map(str.isalpha, word)) for word in words)
    if alphabetic < settings.min_alphabetic_ratio * len(words):
        return "not_alphabetic"
    return None


def _reason_of_lines(text: str, settings: CleaningSettings) -> str | None:
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if line]
    if len(lines) < _FEWEST_LINES:
        return None
    if sum(line.startswith(_BULLETS) for line in lines) > settings.max_bullet_line_ratio * len(lines):
        return "bullet_lines"
    if sum(line.endswith(("…", "...")) for line in lines) > settings.max_ellipsis_line_ratio * len(lines):
        return "ellipsis_lines"
    if len(lines) - len(set(lines)) > settings.max_duplicate_line_ratio * len(lines):
        return "duplicate_lines"
    return None


def _reason_of_repetition(tokens: list[str], settings: CleaningSettings) -> str | None:
    characters = sum(map(len, tokens))
    largest = settings.max_top_ngram_ratio * characters
    if any(top_ngram_characters(tokens, n) > largest for n in ngram_sizes(tokens, 2, 3, 4)):
        return "top_ngram"
    # Gopher has a bound for each n from 5 to 10. Where a 6-gram repeats, its 5-grams do: one bound is tightest at n = 5.
    (n,) = ngram_sizes(tokens, 5)
    if duplicate_ngram_characters(tokens, n) > settings.max_duplicate_ngram_ratio * characters:
        return "duplicate_ngrams"
    return None


def ngram_sizes(tokens: list[str], *words: int) -> list[int]:
    """The sizes of n-grams of so many words, in characters where the text is written in these: eight stand for five words.

    >>> ngram_sizes(["宝", "玉", "说"], 2, 5), ngram_sizes(["one", "two"], 2, 5)
    ([3, 8], [2, 5])
    """
    return [n * 8 // 5 for n in words] if are_characters(tokens) else list(words)


def top_ngram_characters(tokens: list[str], n: int) -> int:
    """Characters inside the repeated n-gram that covers most of them (its length times its count); 0 if none repeats.

    >>> top_ngram_characters("to be or not to be".split(), 2)
    8
    """
    counts = Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
    return max((count * sum(map(len, ngram)) for ngram, count in counts.items() if count > 1), default=0)


def duplicate_ngram_characters(tokens: list[str], n: int) -> int:
    """Characters of tokens inside an n-gram that stood in the text before; overlapping n-grams count once.

    >>> duplicate_ngram_characters("to be or not to be".split(), 2)
    4
    """
    seen: set[tuple[str, ...]] = set()
    characters = covered = 0  # tokens before `covered` are counted
    for start, ngram in enumerate(zip(*(tokens[i:] for i in range(n)), strict=False)):
        if ngram in seen:
            characters += sum(map(len, tokens[max(start, covered) : start + n]))
            covered = start + n
        else:
            seen.add(ngram)
    return characters
