"""Text in other languages than English: kept, cut into its own units, and its near-duplicates found, at every level."""

import json
from itertools import combinations, islice
from pathlib import Path

import pytest

from shared_data.cleaning.deduplication import shingles
from shared_data.cleaning.filters import ngram_sizes, rejection_reason
from shared_data.cleaning.languages import UNKNOWN, language_of
from shared_data.cleaning.word_lists import FUNCTION_WORDS, LANGUAGES, LANGUAGES_OF_SCRIPT
from shared_data.cleaning.words import letters, split_at_spaces, split_words
from shared_data.corpus.documents import Document
from shared_data.corpus.statistics import analyse, unit_of
from shared_data.errors import UserError
from shared_data.generated_text import describe
from shared_data.runs import RunFolder
from shared_data.settings import CleaningSettings, DataSettings, DeduplicationSettings, load_settings
from shared_data.story_world import StoryWorld
from shared_data.story_world.foreign import FOREIGN_SENTENCES
from tests.real_files.made_texts import made_text, with_changed_characters
from v1_quick.data_pipeline.prepare import prepare_documents as prepare1
from v1_quick.data_pipeline.processing import deduplication as v1
from v2_handwritten.data_pipeline.prepare import prepare_documents as prepare2
from v2_handwritten.data_pipeline.processing import deduplication as v2
from v3_numpy_deep.data_pipeline.prepare import prepare_documents as prepare3
from v3_numpy_deep.data_pipeline.processing import deduplication as v3

RULES = CleaningSettings()
MADE = ("zh", "ja", "th", "ko")
# Beginnings of the Universal Declaration of Human Rights, which stands in every language.
RIGHTS = {
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt und sollen einander im Geist der Brüderlichkeit begegnen.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y conciencia, deben comportarse fraternalmente los unos con los otros.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e di coscienza e devono agire gli uni verso gli altri in spirito di fratellanza.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão e de consciência, devem agir uns para com os outros em espírito de fraternidade.",
    "nl": "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren. Zij zijn begiftigd met verstand en geweten, en behoren zich jegens elkander in een geest van broederschap te gedragen.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и должны поступать в отношении друг друга в духе братства.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। उन्हें बुद्धि और अन्तरात्मा की देन प्राप्त है और परस्पर उन्हें भाईचारे के भाव से बर्ताव करना चाहिए।",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi. Mọi con người đều được tạo hóa ban cho lý trí và lương tâm và cần phải đối xử với nhau trong tình anh em.",
    "fi": "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan. Heille on annettu järki ja omatunto, ja heidän on toimittava toisiaan kohtaan veljeyden hengessä.",
}  # fmt: skip
SPAM = "Dogs run fast over green hills while small birds sing loudly from tall trees near quiet rivers."


def test_words_are_cut_at_spaces_and_characters_where_there_are_none() -> None:
    assert split_words("宝玉 said: “don't!” 第12回") == ["宝", "玉", "said", "don't", "第", "12", "回"]
    assert split_words("コーヒーを飲む") == list("コーヒーを飲む")
    assert split_words("กำลังดี") == ["ก", "ำ", "ลั", "ง", "ดี"], "a Thai vowel or tone stays with its consonant"
    assert split_words("हिन्दी में می‌خواهم") == ["हिन्दी", "में", "می‌خواهم"], "marks and joiners cut no word"
    assert split_at_spaces("a -- b? 是！”他说") == ["a", "--", "b?", "是！”", "他", "说"]
    assert [letters(word) for word in ("café", "cafe\u0301", "हिन्दी", "학교")] == [4, 4, 3, 4]


@pytest.mark.parametrize("code", RIGHTS)
def test_the_language_of_a_text_is_known_and_auto_keeps_it(code: str) -> None:
    assert language_of(RIGHTS[code]) == code
    assert rejection_reason(RIGHTS[code], RULES) is None
    assert rejection_reason(RIGHTS[code], RULES, {code}) is None
    assert rejection_reason(RIGHTS[code], RULES, {"en", "zh"}) == "other_language"


@pytest.mark.parametrize("code", MADE)
def test_made_texts_are_known_and_pass_every_rule(code: str) -> None:
    for seed in range(20):
        text = made_text(code, seed, 300 if code == "ko" or seed > 9 else 60)
        assert language_of(text) == code
        assert rejection_reason(text, RULES) is None
        assert rejection_reason(text, RULES, {"en"}) == "other_language"


def test_foreign_sentences_are_told_from_stories_and_spam_in_english_is_caught() -> None:
    codes = {"German": "de", "French": "fr", "Spanish": "es"}
    for language, sentences in FOREIGN_SENTENCES.items():
        assert {language_of(sentence) for sentence in sentences} == {codes[language]}
    assert {language_of(story.text) for story in islice(StoryWorld().stories(3), 200)} == {"en"}
    assert rejection_reason(SPAM, RULES) == "stop_words"
    assert language_of("Mjǫk þótti þeim ǫllum þat undarligt, ok fóru síðan heim.") == UNKNOWN
    assert language_of("12 345 …") == UNKNOWN
    for code, words in FUNCTION_WORDS.items():
        assert len(words) > 20
        assert code in LANGUAGES


def test_every_language_that_shares_its_script_has_function_words() -> None:
    shared = {code for codes in LANGUAGES_OF_SCRIPT.values() if len(codes) > 1 for code in codes}
    assert shared == set(FUNCTION_WORDS)


def test_rules_about_repetition_and_length_count_characters() -> None:
    assert ngram_sizes(list("宝玉笑道"), 2, 3, 4, 5) == [3, 4, 6, 8]
    assert ngram_sizes(["one", "two", "三"], 2, 3, 4, 5) == [2, 3, 4, 5]
    text = made_text("zh", 0, 200)
    assert rejection_reason("你好，世界。", RULES) == "too_few_words"
    assert rejection_reason(text * 4, RULES) == "duplicate_ngrams"
    assert rejection_reason("免费下载" * 30 + text, RULES) == "top_ngram"
    assert rejection_reason("１２３４ 五" * 40, RULES) == "not_alphabetic"


@pytest.mark.parametrize("level", [v1, v2, v3], ids=["v1", "v2", "v3"])
@pytest.mark.parametrize("code", ["zh", "ja", "th"])
def test_copies_with_a_hundredth_of_the_characters_changed_are_found(level, code: str) -> None:
    texts = [made_text(code, seed, 300 + 700 * seed // 39) for seed in range(40)]
    copies = [with_changed_characters(text, 0.01, seed) for seed, text in enumerate(texts)]
    deduplicator = level.new_deduplicator(DeduplicationSettings())
    found = [
        deduplicator.find_original(Document(text, str(number))) for number, text in enumerate(texts + copies)
    ]
    assert found[:40] == [None] * 40, "different texts were taken for duplicates"
    assert found[40:] == [str(number) for number in range(40)]


def test_shingles_of_unspaced_and_mixed_text_are_runs_of_characters_and_words() -> None:
    assert shingles("宝玉笑道", 3) == {"宝 玉 笑", "玉 笑 道"}
    assert shingles("用 Python 写。", 2) == {"用 python", "python 写"}
    for code in ("zh", "ja", "th"):
        sets = [shingles(made_text(code, seed, 300 + 18 * seed), 5) for seed in range(40)]
        largest = max(len(a & b) / len(a | b) for a, b in combinations(sets, 2))
        assert largest < 0.45, "one vocabulary makes no duplicates"


def test_statistics_say_what_they_counted() -> None:
    chinese = analyse([made_text("zh", 0)], lambda counts: 1.0)
    assert chinese["words"] == chinese["characters"] > 400
    assert unit_of(chinese) == "characters"
    korean = analyse([made_text("ko", 0)], lambda counts: 1.0)
    assert korean["characters"] == 0
    assert unit_of(korean) == "words"
    assert describe(["宝玉笑道", "宝玉说"]) == {"mean_characters": 3.5, "distinct_word_ratio": 5 / 7}


@pytest.mark.parametrize("prepare", [prepare1, prepare2, prepare3], ids=["v1", "v2", "v3"])
def test_a_corpus_of_many_languages_is_kept_or_filtered_by_the_setting(prepare, tmp_path: Path) -> None:
    source = tmp_path / "texts.jsonl"
    texts = [made_text(code, seed, 300) for code in MADE for seed in range(20)]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    level = {prepare1: "v1", prepare2: "v2", prepare3: "v3"}[prepare]
    kept = {}
    for language in ('"auto"', '"zh"', '["ja", "th"]'):
        overrides = [f"data.source={source}", f"data.language={language}", "data.validation_fraction=0.2"]
        settings = load_settings("smoke", [*overrides, "data.test_fraction=0.2"])
        metrics = prepare(settings, RunFolder(level, settings, tmp_path / language.strip('"[]')))
        kept[language] = metrics["documents_read"] - metrics["dropped_by_cleaning"]
        assert metrics.get("dropped_other_language", 0) == 80 - kept[language]
    assert kept == {'"auto"': 80, '"zh"': 20, '["ja", "th"]': 40}


def test_the_story_world_is_english_and_unknown_codes_are_refused() -> None:
    assert DataSettings().languages == {"en"}
    assert DataSettings(source="mine.txt").languages is None
    assert DataSettings(source="mine.txt", language="zh").languages == {"zh"}
    for wrong in ("chinese", '["zh", "auto"]', "[]"):
        with pytest.raises(UserError, match=r"unknown language .* use auto, or one or more of .* zh"):
            load_settings("smoke", [f"data.language={wrong}"])
