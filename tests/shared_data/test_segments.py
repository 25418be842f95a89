"""Kinds of segment: a story worked out by hand, every character covered, what is told again against what is told first; tokens."""

from itertools import islice, pairwise

import numpy as np
import pytest

from shared_data.errors import UserError
from shared_data.story_world.grammar import compile_template, parse
from shared_data.story_world.pieces import spell_out
from shared_data.story_world.segments import KINDS, Span, segments, spans_of, token_kinds
from shared_data.story_world.splits import SPLITS
from shared_data.story_world.world import Story, StoryWorld


@pytest.fixture(scope="module")
def stories() -> list[Story]:
    return [story for split in SPLITS for story in islice(StoryWorld().stories(7, split), 25)]


def test_letters_come_from_words_draws_and_slots() -> None:
    start = compile_template("(A|The) [pet] runs. {pet}!", {"pet": ["cat", "dog"]})
    (told,) = parse(start, {}, "The dog runs. dog!")
    pieces = spell_out(start, {}, told.steps)
    assert [(piece.letters, piece.label, piece.key) for piece in pieces] == [
        ("The", "wording", ""), (" ", "", ""), ("dog", "pet", "pet"), (" runs. ", "", ""), ("dog", "", "pet"), ("!", "", ""),
    ]  # fmt: skip


def test_the_kinds_of_a_story_with_its_question_and_answer() -> None:
    text = next(StoryWorld().stories(4)).text
    assert text.startswith("Let me tell you about Milo the boy, careful and big. He loved to jump in puddles")
    shown = spans_of(f"{text}\nQuestion: What is Milo like?\nMilo the boy is careful.")
    assert shown[:14] == [
        ("Let me tell you about ", "wording"), ("Milo", "name"), (" the ", "wording"), ("boy", "description"),
        (", ", "wording"), ("careful", "description"), (" and ", "wording"), ("big", "description"), (". ", "wording"),
        ("He", "pronoun"), (" loved to ", "wording"), ("jump in puddles", "description"), (" in the ", "wording"), ("evening", "time"),
    ]  # fmt: skip
    named = [(letters, kind) for letters, kind in shown if kind.startswith(("object", "number", "feeling"))]
    assert named == [
        ("cape", "object"), ("coin", "object"), ("cape", "object again"), ("jolly", "feeling"), ("ducks", "object"),
        ("four", "number"), ("one", "number"), ("five", "number"), ("cape", "object again"),
    ]  # fmt: skip
    assert shown[-2:] == [
        ("\nQuestion: What is Milo like?", "question"),
        ("\nMilo the boy is careful.", "answer"),
    ]


def test_every_character_has_one_kind_and_neighbours_differ(stories: list[Story]) -> None:
    seen = set()
    for story in stories:
        spans = segments(story.text)
        ends = [span.end for span in spans]
        assert [span.start for span in spans] == [0, *ends[:-1]]
        assert ends[-1] == len(story.text)
        assert all(before.kind != after.kind for before, after in pairwise(spans))
        seen |= {span.kind for span in spans}
    assert seen == set(KINDS) - {"question", "answer"}


def test_a_friend_is_new_once_and_every_later_mention_is_again(stories: list[Story]) -> None:
    for story in stories:
        facts, shown = story.facts, spans_of(story.text)
        for name in (facts.hero, facts.friend):
            kinds = [kind for letters, kind in shown if letters == name]
            assert kinds == ["name"] + ["name again"] * (story.text.count(name) - 1)
        things = [kind for letters, kind in shown if letters.split()[-1:] == [facts.thing]]
        assert things[0] == "object"
        assert set(things[1:]) <= {"object again"}
        feelings = {letters for letters, kind in shown if kind == "feeling"}
        assert set(facts.feelings.values()) <= feelings


def test_a_text_that_is_no_story_has_no_segments() -> None:
    story = next(StoryWorld().stories(4)).text
    assert segments("") == []
    assert segments("Once upon a time, there was a fox.") == []
    assert segments(story[:-1]) == []
    assert segments(f"Once upon a time.\nQuestion: {story}") == []


def test_a_token_has_the_kind_of_most_of_its_bytes() -> None:
    text = "a né b."
    spans = [Span(0, 2, "wording"), Span(2, 4, "name"), Span(4, 5, "wording"), Span(5, 7, "number")]
    #              a   ␣n     é   ␣b    .   é takes two bytes
    lengths = np.array([1, 2, 2, 2, 1])
    assert token_kinds(text, spans, lengths, [0, 1, 2, 3, 4]) == [
        "wording",  # one byte of it
        "name",  # a blank of the wording and one byte of the name: the later of equals
        "name",
        "number",
        "number",
    ]
    assert token_kinds(text, spans, np.array([8]), [0]) == [
        "wording"
    ]  # 3 bytes of 8, as the name, and no other has more


def test_tokens_that_are_not_the_bytes_of_the_text_are_refused() -> None:
    with pytest.raises(
        UserError, match="6 bytes of tokens stand for a text of 7; use a byte-level tokenizer"
    ):
        token_kinds("a né b", [Span(0, 6, "wording")], np.array([6]), [0])
    with pytest.raises(UserError, match="0 bytes of tokens"):
        token_kinds("a", [Span(0, 1, "wording")], np.array([1]), [])
