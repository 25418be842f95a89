"""Text files as they are found: where they are cut into documents, and how small they may be."""

import time
from pathlib import Path

import pytest

from shared_data.cleaning.cleaning import Cleaner
from shared_data.cleaning.filters import REASONS
from shared_data.cleaning.repair import strip_markup
from shared_data.corpus.documents import Document
from shared_data.corpus.small_corpus import SETTING_OF_REASON
from shared_data.corpus.splits import read_documents
from shared_data.corpus.text_units import GROUP, LONGEST_GROUP, split_text
from shared_data.errors import UserError
from shared_data.runs import RunFolder
from shared_data.settings import CleaningSettings, load_settings
from v1_quick.data_pipeline import prepare as v1
from v2_handwritten.data_pipeline import prepare as v2
from v3_numpy_deep.data_pipeline import prepare as v3

LEVELS = {"v1": v1, "v2": v2, "v3": v3}
SENTENCE = "The old captain counted {} barrels of salt and wrote the number into his book."


def sentences(count: int, between: str) -> str:
    return between.join(SENTENCE.format(number) for number in range(count))


def groups(text: str) -> list[str]:
    return list(split_text([text], "paragraphs", True))


def test_a_blank_line_may_hold_spaces() -> None:
    """As in WikiText, whose paragraphs stand apart by "\\n \\n"."""
    for blank in ("\n\n", "\n \n", "\n\t\n", "\n\u3000\n"):
        paragraphs = ["\n".join([SENTENCE.format(number)] * 8) for number in range(60)]
        found = groups(blank.join(paragraphs))
        assert all(text.startswith("The old captain") for text in found)
        assert all(len(text) < 2 * GROUP for text in found)
        assert sum(text.count("\n\n") + text.count(blank) for text in found) > 0
        assert {paragraph for text in found for paragraph in text.split(blank)} == set(paragraphs), (
            "no paragraph is cut"
        )


@pytest.mark.parametrize(
    ("between", "ends"),
    [("\n", "."), (" ", "."), ("。", "。")],
    ids=["lines", "one line", "one line of Chinese"],
)
def test_a_text_without_blank_lines_is_cut_near_two_thousand_characters(between: str, ends: str) -> None:
    text = (
        sentences(400, between) if between != "。" else "".join(f"老船长数了{n}桶盐。" for n in range(4000))
    )
    found = groups(text)
    assert "".join("".join(found).split()) == "".join(text.split()), "nothing is lost"
    assert all(GROUP <= len(piece) < 1.2 * GROUP for piece in found[:-1])
    assert all(piece.endswith(ends) for piece in found)


def test_a_text_without_any_mark_is_cut_all_the_same() -> None:
    assert {len(piece) for piece in groups("x" * 3 * LONGEST_GROUP)} == {LONGEST_GROUP}


def prepared(level: str, folder: Path, source: Path, *overrides: str) -> tuple[RunFolder, dict]:
    overrides = ("data.cleaning.enabled=false", "data.deduplication.near=false", *overrides)
    settings = load_settings("smoke", [f"data.source={source}", *overrides])
    run = RunFolder(level, settings, folder)
    return run, LEVELS[level].prepare_documents(settings, run)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["lines", "one line", "spaced", "small"])
def test_the_first_stage_takes_texts_of_every_shape(level: str, name: str, tmp_path: Path) -> None:
    """Of six public files five failed here."""
    path = tmp_path / "text.txt"
    text = {
        "lines": sentences(300, "\n"),
        "one line": sentences(300, " "),
        "spaced": sentences(300, " \n \n "),
        "small": sentences(80, "\n\n"),  # three documents, of which chance would hold out none
    }[name]
    path.write_text(text, newline="\r\n" if name == "lines" else "\n")
    run, metrics = prepared(level, tmp_path / "run", path)
    counts = {
        split: len(run.documents(split).read_text().splitlines()) for split in ("train", "validation", "test")
    }
    assert min(counts.values()) > 0
    assert metrics["documents"] == counts["train"]
    assert metrics["validation_documents"] == counts["validation"]
    assert sum(run.documents(split).read_text().count("captain") for split in counts) == text.count("captain")
    assert metrics["bytes"] == sum(
        len(document.text.encode()) for document in read_documents(run.documents("train"))
    )


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_not_read_is_said(level: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(sentences(800, "\n"))
    _, metrics = prepared(level, tmp_path / "run", path, "data.max_megabytes=0.03")
    assert metrics["stopped_at_megabytes"] == 0.03
    assert 30_000 <= metrics["bytes_read"] < 33_000
    _, metrics = prepared(level, tmp_path / "whole", path, "data.max_megabytes=1")
    assert "stopped_at_megabytes" not in metrics


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (sentences(3, "\n"), r"holds 1 document after .* too few for 3 splits .*data\.text_unit=paragraphs or line, .*data\.test_fraction=0"),
        ("\n\n".join(["Too short."] * 400), r"dropped all .* for duplicate_lines\); loosen .*data\.cleaning\.max_duplicate_line_ratio=1"),
    ],
)  # fmt: skip
def test_a_corpus_that_is_too_small_names_the_setting_that_helps(
    text: str, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        prepared("v2", tmp_path / "run", path, f"data.cleaning.enabled={str('cleaning' in says).lower()}")


def test_every_rule_of_cleaning_has_its_setting() -> None:
    assert set(SETTING_OF_REASON) == set(REASONS)
    for assignment in SETTING_OF_REASON.values():
        assert load_settings("smoke", [assignment])


@pytest.mark.parametrize(
    "unit", ["<!--", "<script>", "<style ", "<a ", "&amp;", "\x1b[", "a\u0301", "\ud800"]
)
def test_cleaning_takes_linear_time_whatever_the_text(unit: str) -> None:
    """A megabyte of comments that never close took a quarter of an hour."""
    started = time.perf_counter()
    Cleaner(CleaningSettings()).clean(Document(unit * (500_000 // len(unit)), "x"))
    assert time.perf_counter() - started < 5


def test_a_comment_or_script_goes_with_what_is_in_it() -> None:
    text = "a<!-- x --> b <!-- y\n--><SCRIPT src='z'>c <b> d</Script > e <header>f</header> <!-- g"
    assert strip_markup(text).split() == ["a", "b", "e", "f", "<!--", "g"]
