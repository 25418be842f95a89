"""A corpus of few documents: no split may stay empty, and what is missing is said.

A hash of each document chooses its split (`splits.choose_split`), so that of thirty documents chance may hold out none. Then the training
documents that are nearest to the split's part of [0, 1) are moved into it.

    fill_empty_splits(splits.writers, data, place_of); require_documents(splits.writers, data, cleaning_report)
"""

import json
from collections.abc import Callable, Mapping
from typing import IO, Any, Protocol

from shared_data.cleaning.cleaning import CleaningReport
from shared_data.errors import UserError
from shared_data.settings import DataSettings

# The setting behind each rule of `cleaning/filters.py`, for the message.
SETTING_OF_REASON = {
    "too_few_words": "data.cleaning.min_words=0",
    "too_many_words": "data.cleaning.max_words=1000000",
    "word_length": "data.cleaning.max_mean_word_length=1000",
    "symbols": "data.cleaning.max_symbol_ratio=1",
    "not_alphabetic": "data.cleaning.min_alphabetic_ratio=0",
    "bullet_lines": "data.cleaning.max_bullet_line_ratio=1",
    "ellipsis_lines": "data.cleaning.max_ellipsis_line_ratio=1",
    "duplicate_lines": "data.cleaning.max_duplicate_line_ratio=1",
    "stop_words": "data.cleaning.min_stop_words=0",
    "other_language": "data.language=auto",
    "function_words": "data.cleaning.min_language_ratio=0",
    "top_ngram": "data.cleaning.max_top_ngram_ratio=1",
    "duplicate_ngrams": "data.cleaning.max_duplicate_ngram_ratio=1",
}


class Writer(Protocol):
    """A split's file: see `splits.DocumentWriter`."""

    file: IO[str]
    documents: int
    bytes: int

    def count(self, text: str, change: int = 1) -> None:
        """Count a document, or take one off."""


def required_splits(data: DataSettings) -> list[str]:
    """The splits that must not be empty."""
    return ["train", "validation", *(["test"] if data.test_fraction > 0 else [])]


def fill_empty_splits(
    writers: Mapping[str, Writer], data: DataSettings, place_of: Callable[[str, DataSettings], float]
) -> None:
    """Move one training document into each required split that has none, if enough are left to train on."""
    empty = [split for split in required_splits(data) if not writers[split].documents]
    train = writers["train"]
    if not empty or train.documents <= len(empty):
        return
    train.file.seek(0)
    lines = train.file.readlines()  # a corpus that gives nothing to hold out is small
    texts = [json.loads(line)["text"] for line in lines]
    nearest = sorted(range(len(lines)), key=lambda number: place_of(texts[number], data))[: len(empty)]
    for split, number in zip(empty, nearest, strict=True):
        writers[split].file.write(lines[number])
        writers[split].count(texts[number])
        train.count(texts[number], -1)
    train.file.seek(0)
    train.file.truncate()
    train.file.writelines(line for number, line in enumerate(lines) if number not in nearest)


def require_documents(writers: Mapping[str, Any], data: DataSettings, cleaning: CleaningReport) -> None:
    """Refuse a corpus of which nothing remains to train on, or nothing to hold out."""
    kept = sum(writer.documents for writer in writers.values())
    if not kept:
        reason, count = cleaning.dropped.most_common(1)[0]
        raise UserError(
            f"cleaning dropped all {cleaning.documents:,} documents of {data.source!r} ({count:,} for {reason}); "
            f"loosen that rule with --set {SETTING_OF_REASON[reason]}, or set data.cleaning.enabled=false"
        )
    splits = required_splits(data)
    if not all(writers[split].documents for split in splits):
        without_test = ", or do without a test split with data.test_fraction=0" if "test" in splits else ""
        raise UserError(
            f"{data.source!r} holds {kept:,} document{'s' * (kept > 1)} after cleaning ({cleaning.documents:,} before), too few for "
            f"{len(splits)} splits ({', '.join(splits)}); bring more text, cut text files into smaller documents with "
            f"data.text_unit=paragraphs or line{without_test}"
        )
