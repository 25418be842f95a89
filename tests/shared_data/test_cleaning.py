"""Cleaning: what it must do to a text, and which texts it drops and why; level 1 repairs encodings with ftfy."""

import unicodedata
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_data.cleaning import filters, repair
from shared_data.cleaning.cleaning import Cleaner
from shared_data.cleaning.filters import rejection_reason
from shared_data.cleaning.repair import REPAIRS, Repairs, repair_text
from shared_data.corpus.documents import Document
from shared_data.settings import CleaningSettings
from shared_data.story_world import StoryWorld
from v1_quick.data_pipeline.processing.cleaning import REPAIRS as FTFY_REPAIRS

PHRASES = CleaningSettings().boilerplate_phrases
STORY = next(StoryWorld().stories(5)).text

# Broken and repaired: ftfy and our own repairs agree on these.
REPAIRED = {
    "plain text\n\nwith “quotes” – and café": "plain text\n\nwith “quotes” – and café",
    # mojibake: Windows-1252, Latin-1, twice over, other alphabets, emoji
    "cafÃ© and naÃ¯ve": "café and naïve",
    "â€œHi,â€\x9d said Tom. Itâ€™s late â€¦": "“Hi,” said Tom. It’s late …",
    "cafÃƒÂ©": "café",
    "ÐŸÑ€Ð¸Ð²ÐµÑ‚": "Привет",
    "æ—¥æœ¬èªž": "日本語",
    "ðŸ˜€ smile": "😀 smile",
    "Ä\x8dlovÄ›k": "člověk",
    # good text that looks a little like it
    "«CAFÉ», “voilà”… il est allé…": "«CAFÉ», “voilà”… il est allé…",
    "São João e AÇÃO": "São João e AÇÃO",
    # markup
    "<p>One.</p><p>Two &amp; three.</p>": "One.\n\nTwo & three.",
    "a <b>bold</b> <a href='xy'>link</a><br/>next": "a bold link\nnext",
    "&amp;amp;lt;p&amp;gt;text": "text",
    "<script>alert('x < y')</script>After <!-- hidden -->all": "After all",
    "I <3 you, and a < b > c": "I <3 you, and a < b > c",
    "Tom&rsquo;s &#8220;ball&#8221; &lt;3": "Tom’s “ball” <3",
    # control characters, line ends, Unicode forms, whitespace
    "a\x00b\x1b[31mred\x1b[0m\ufeff\u200bc": "abredc",
    "it\x92s \x93quoted\x94": "it’s “quoted”",
    "half \ud83d a pair \ud83d\ude00": "half \ufffd a pair 😀",
    "one\r\ntwo\rthree": "one\ntwo\nthree",
    "cafe\u0301": "café",
    "  a \t b\u00a0 c  \n\n\n\n d ": "a b c\n\nd",
    # boilerplate
    f"{STORY}\n\nClick here to read our privacy policy.": STORY,
    "": "",
}


@pytest.mark.parametrize("repairs", [REPAIRS, FTFY_REPAIRS], ids=["by hand", "ftfy"])
@pytest.mark.parametrize("broken", REPAIRED)
def test_known_damage_is_repaired_alike_by_hand_and_by_ftfy(repairs: Repairs, broken: str) -> None:
    assert repair_text(broken, PHRASES, repairs) == REPAIRED[broken]


PIECES = st.sampled_from(
    ["<p>", "</p>", "<", ">", "&", "amp;", "&lt;", "&#60;", "Ã", "©", "â€", "™", "\x9d", "É", "»", "\n", " ", "\r", "ð",
     "\ud83d", "\ude00", "\u0301", "e", "privacy policy", "<!--", "-->", "<script>", "</script>", "\x1b[3", "1m", "\x85"]
)  # fmt: skip
TEXTS = st.one_of(st.text(st.characters(), max_size=60), st.lists(PIECES, max_size=40).map("".join))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXTS)
def test_repair_never_raises_is_idempotent_and_leaves_unicode_text(text: str) -> None:
    for repairs in (REPAIRS, FTFY_REPAIRS):
        repaired = repair_text(text, PHRASES, repairs)
        assert repair_text(repaired, PHRASES, repairs) == repaired
        assert repaired == unicodedata.normalize("NFC", repaired)
        repaired.encode("utf-8")


WORDS = [
    "naïve", "café", "Straße", "señor", "sąd", "ještě", "člověk", "ősz", "Привет", "Γειά", "שלום",
    "日本語", "😀", "—", "“a”…",
]  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(WORDS)))
def test_mojibake_of_any_alphabet_is_undone(words: list[str]) -> None:
    """UTF-8 read as Windows-1252 (and as Latin-1 the five bytes unknown there) comes back letter by letter."""
    text = " ".join(words)
    broken = "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in text.encode())
    assert repair.fix_mojibake(broken) == text
    assert repair.fix_mojibake(text) == text


def test_an_onion_of_markup_takes_no_time() -> None:
    onion = "<" * 3000 + "b>" * 3000 + "&amp" * 3000 + ";lt;" * 3000
    peeled = repair_text(onion)
    assert "<" not in peeled
    assert repair_text(peeled) == peeled


GOOD = " ".join(STORY.split())
REJECTED = {
    "too_few_words": "The cat and the dog.",
    "too_many_words": "the cat and a dog sat on it " * 20_000,
    "word_length": "a b c d e f g h i the of to i u a a o " * 3,
    "symbols": " ".join(f"{word} #" for word in GOOD.split()),
    "not_alphabetic": " ".join(f"{word} 12 34" for word in GOOD.split()),
    "bullet_lines": "\n".join(f"- {sentence}" for sentence in GOOD.split(". ")),
    "ellipsis_lines": "\n".join(f"{sentence} ..." for sentence in GOOD.split(". ")),
    "duplicate_lines": GOOD.replace(". ", ".\n") + "\n" + GOOD.replace(". ", ".\n"),
    "stop_words": "Dogs run fast over green hills while small birds sing loudly from tall trees near quiet rivers.",
    "other_language": "Der Hund und die Katze haben ein Haus, und der Vogel singt jeden Tag ein schönes Lied im Garten.",
    "function_words": "Dogs with the longest legs run fast, small birds sing loudly near tall trees beside quiet rivers.",
    "top_ngram": "buy cheap shoes to have the best day " + "buy cheap shoes " * 12 + GOOD,
    "duplicate_ngrams": (GOOD + " ") * 4,
}


@pytest.mark.parametrize("reason", filters.REASONS)
def test_every_rule_rejects_its_example(reason: str) -> None:
    assert rejection_reason(REJECTED[reason], CleaningSettings(), {"en"}) == reason


def test_good_prose_passes_every_rule() -> None:
    rules = CleaningSettings()
    prose = """Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, and
        nothing particular to interest me on shore, I thought I would sail about a little and see the watery part."""
    for text in [story.text for story in islice(StoryWorld().stories(3), 200)] + [prose]:
        assert rejection_reason(text, rules) is None


def test_one_bound_for_repeated_ngrams_is_tightest_for_the_shortest() -> None:
    """The exercise of cleaning.md: what repeats as n + 1 words repeats as n words, so it covers no more."""
    for story in islice(StoryWorld().stories(4), 50):
        tokens = (story.text + " " + story.text[:300]).split()
        covered = [filters.duplicate_ngram_characters(tokens, n) for n in range(2, 11)]
        assert covered == sorted(covered, reverse=True)
        assert covered[-1] > 0


def test_the_report_counts_repairs_and_reasons_with_examples() -> None:
    cleaner = Cleaner(CleaningSettings())
    texts = [STORY, f"<p>{STORY}</p>", "Too short.", REJECTED["symbols"]]
    cleaned = [cleaner.clean(Document(text, str(number))) for number, text in enumerate(texts)]
    assert [document is None for document in cleaned] == [False, False, True, True]
    assert cleaned[1].text == STORY
    report = cleaner.report.as_dict()
    assert (report["documents"], report["kept"], report["repaired"]) == (4, 2, 1)
    assert report["dropped"] == {"too_few_words": 1, "symbols": 1}
    assert report["examples"]["too_few_words"] == ["Too short."]
    assert report["repairs"]["markup"] == 1


def test_cleaning_can_be_switched_off_and_still_gives_text_with_a_utf8_form() -> None:
    cleaner = Cleaner(CleaningSettings(enabled=False))
    assert cleaner.clean(Document("<p>x \ud800", "0")).text == "<p>x \ufffd"
