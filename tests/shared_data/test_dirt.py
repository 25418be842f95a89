"""The dirty corpus: its labels are true, and the task they set can be solved."""

from __future__ import annotations

import html
import re
from collections import Counter
from itertools import combinations, islice

import pytest

from shared_data.errors import UserError
from shared_data.story_world import StoryWorld
from shared_data.story_world.dirt import (
    BOILERPLATE,
    LABELS,
    NEAR,
    DirtyDocument,
    dirty_documents,
    jaccard,
    shingles,
)


@pytest.fixture(scope="module")
def documents() -> list[DirtyDocument]:
    return list(islice(dirty_documents(seed=1), 3000))


def test_every_kind_of_dirt_occurs_at_the_rate_asked_for(documents: list[DirtyDocument]) -> None:
    labels = Counter(document.label for document in documents)
    assert set(labels) == set(LABELS)
    assert 0.26 < 1 - labels["clean"] / len(documents) < 0.34
    assert min(labels.values()) > 40
    assert len({document.id for document in documents}) == len(documents)


def test_what_can_be_repaired_has_its_expected_text_and_the_rest_is_dropped(
    documents: list[DirtyDocument],
) -> None:
    repairs = {"clean", "markup", "mojibake", "control_characters", "whitespace", "boilerplate"}
    for document in documents:
        assert document.should_drop == (document.label not in repairs)
        assert (document.expected_text == document.text) == (document.label == "clean")


def test_a_straightforward_repair_reaches_the_expected_text(documents: list[DirtyDocument]) -> None:
    def repair(document: DirtyDocument) -> str:
        text = document.text
        match document.label:
            case "markup":
                return html.unescape(re.sub(r"<[^>]+>", "", text))
            case "mojibake":
                return b"".join(
                    character.encode("latin-1" if "\x80" <= character <= "\x9f" else "cp1252")
                    for character in text
                ).decode()
            case "control_characters":
                return re.sub("[\x00-\x08\x0e-\x1f\x7f\u200b\ufeff]", "", text)
            case "whitespace":
                return " ".join(text.split())
            case "boilerplate":
                return "\n".join(line for line in text.split("\n") if line not in BOILERPLATE)
        return text

    for document in documents:
        if not document.should_drop:
            assert repair(document) == document.expected_text, document.label


def test_duplicates_name_their_original(documents: list[DirtyDocument]) -> None:
    by_id = {document.id: document for document in documents}
    for document in documents:
        if document.duplicate_of is None:
            assert not document.label.endswith("_duplicate")
            continue
        original = by_id[document.duplicate_of]
        assert original.label == "clean"
        similarity = jaccard(document.text, original.text)
        assert similarity == 1 if document.label == "exact_duplicate" else similarity >= NEAR
        assert (document.text == original.text) == (document.label == "exact_duplicate")


def test_independent_stories_are_far_from_near_duplicates() -> None:
    stories = [shingles(story.text) for story in islice(StoryWorld().stories(seed=8), 500)]
    assert max(len(a & b) / len(a | b) for a, b in combinations(stories, 2)) < 0.3


def test_the_same_seed_gives_the_same_dirt_and_bad_fractions_are_refused(
    documents: list[DirtyDocument],
) -> None:
    assert list(islice(dirty_documents(seed=1), 200)) == documents[:200]
    assert {document.label for document in islice(dirty_documents(dirt_fraction=0), 200)} == {"clean"}
    with pytest.raises(UserError, match="dirt_fraction"):
        next(dirty_documents(dirt_fraction=1.5))
