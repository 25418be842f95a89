"""Information of experts and answers that patterns keep, as in shared_data/story_world/segments.md."""

import numpy as np
import pytest

from shared_data.attention.patterns import AttentionPattern, visible_pairs
from shared_data.evaluation.expert_reading import mutual_information
from shared_data.evaluation.kept_answers import AnswerPrompt, kept_answers, pattern_rows
from shared_data.story_world.segments import spans_of
from shared_data.story_world.world import StoryWorld
from tests.worked import agrees

PAGE = "shared_data/story_world/segments.md"


def test_the_kinds_of_two_sentences() -> None:
    text = next(StoryWorld().stories(4)).text
    sentences = "Milo had an old coin, and Zoe swapped the cape for it. How jolly Zoe was!"
    assert sentences in text
    shown = spans_of(text)
    first = next(place for place, (letters, _) in enumerate(shown) if letters == "coin") - 4
    assert [pair for pair in shown[first : first + 12] if pair[1] != "wording"] == [
        ("Milo", "name again"), ("an old", "description"), ("coin", "object"), ("Zoe", "name again"),
        ("cape", "object again"), ("jolly", "feeling"),
    ]  # fmt: skip


def test_information_of_four_names_and_four_feelings() -> None:
    counts = np.array([[3, 1], [1, 3]])
    agrees(PAGE, "assignments", counts)
    joint = counts / 8
    terms = joint * np.log2(joint / 0.25)
    agrees(PAGE, "terms", terms)
    assert mutual_information(counts) == pytest.approx(terms.sum())
    assert round(mutual_information(counts), 3) == 0.189


def test_which_patterns_keep_brown() -> None:
    words = [
        "Zoe",
        "had",
        "a",
        "brown",
        "cape",
        ".",
        "Milo",
        "liked",
        "the",
        "cape",
        ".",
        "What",
        "colour",
        "is",
        "the",
        "cape",
        "?",
    ]
    T, answer = len(words), words.index("brown")
    assert (T, answer) == (17, 3)
    patterns = {
        "full": AttentionPattern(),
        "window 8": AttentionPattern("sliding_attention", 8),
        "window 14": AttentionPattern("sliding_attention", 14),
        "chunks": AttentionPattern("chunked_attention", 13),
        "strides": AttentionPattern("strided_attention", 4),
        "sinks": AttentionPattern("sliding_attention", 8, 4),
    }
    kept = kept_answers(pattern_rows(patterns), [AnswerPrompt(list(range(T)), [[answer]])])
    rows = [
        (visible_pairs(pattern, T), kept[name].keys * T, kept[name].whole)
        for name, pattern in patterns.items()
    ]
    agrees(PAGE, "pattern", rows)
