"""Questions about a passage: what an answer tells stands in the passage, and what it says is not told does not."""

import random
import re
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest

from shared_data.story_world import passages
from shared_data.story_world.conversations import conversations
from shared_data.story_world.passages import (
    _TELLS,
    ask_about_passage,
    telling_sentences,
)
from shared_data.story_world.questions import KINDS, answer, split_prompt
from shared_data.story_world.records import DOES_NOT_SAY
from shared_data.story_world.requests import count_sentences, sentences_of
from shared_data.story_world.world import Story, StoryWorld


@pytest.fixture(scope="module")
def stories() -> list[Story]:
    return list(islice(StoryWorld().stories(seed=11), 1500))


def test_sentences_join_to_the_text(stories: list[Story]) -> None:
    for story in stories[:300]:
        sentences = sentences_of(story.text)
        assert " ".join(sentences) == story.text
        assert all(count_sentences(sentence) == 1 for sentence in sentences)


def test_every_phrasing_of_what_a_story_tells_is_recognized(stories: list[Story]) -> None:
    """And few sentences tell it: what is said once must not be found twice."""
    found: Counter[str] = Counter()
    several: Counter[str] = Counter()
    for story in stories:
        facts, sentences = story.facts, sentences_of(story.text)
        for kind in _TELLS:
            for name in (facts.hero, facts.friend):
                known = KINDS[kind].answer(facts, name)
                if known is not None:
                    telling = telling_sentences(kind, facts, name, known, sentences)
                    assert telling, (kind, name, known, story.text)
                    found[kind] += 1
                    several[kind] += len(telling) > 1
    assert set(_TELLS) == {kind for kind in KINDS if found[kind]}
    assert min(found.values()) > 300
    for kind in set(_TELLS) - {"friend", "trade", "place"}:
        assert several[kind] <= 0.002 * found[kind], kind


def test_words_that_tell_something_else_are_not_taken_for_the_answer(stories: list[Story]) -> None:
    facts = stories[0].facts
    thing, hero, trait, kind = facts.thing, facts.hero, facts.hero_trait, facts.hero_kind
    for asked, known, misleading, telling in (
        ("material", "mud", f"{hero} got the {thing} covered with mud.", "They built a wall from mud."),
        ("size", "little", f"A little later, {hero} lost the {thing}.", f"{hero} had a little old red {thing}."),
        ("food", "a pie", "For supper, they had a warm pie.", f"{hero} shared a warm pie."),
        ("place", "in the castle", f"All in the castle knew {hero} the {kind}, {trait} and big.", "They met in the castle."),
    ):  # fmt: skip
        replaced = replace(facts, place="castle")
        assert telling_sentences(asked, replaced, hero, known, [misleading, telling, misleading]) == [1], (
            asked
        )


def test_a_question_is_answered_by_its_passage_alone(stories: list[Story]) -> None:
    rng = random.Random(0)
    kinds: Counter[str] = Counter()
    for number, story in enumerate(stories):
        length = 1 + number % 4
        tasks = ask_about_passage(story, rng, length, 6)
        assert 1 <= len(tasks) <= 6
        assert len({task.prompt for task in tasks}) == len(tasks)
        for task in tasks:
            asked = split_prompt(task.prompt)
            assert asked is not None
            text, question = asked
            assert text in story.text
            assert len(sentences_of(text)) == 1 if length == 1 else len(sentences_of(text)) >= length
            kinds[task.kind] += 1
            if task.kind == "unanswerable":
                assert task.reply == DOES_NOT_SAY
                right = answer(question, story.facts)
                if right != DOES_NOT_SAY:  # told elsewhere in the story, and not here
                    assert re.findall(r"\w+", str(right))[-1] not in re.findall(r"\w+", text)
            else:  # as about the whole story, and every word of the answer that the question lacks is in the passage
                assert task.reply == answer(question, story.facts)
                known = re.search(r"(\w+)\.$", task.reply)
                assert known
                nobody = task.kind == "holder" and known[1] == "nobody"
                assert nobody or known[1].lower() in re.findall(r"\w+", text.lower()), task
    assert 0.12 < kinds["unanswerable"] / kinds.total() < 0.25
    assert set(_TELLS) <= set(kinds)


def test_passages_are_aimed_at_what_few_stories_tell(
    stories: list[Story], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kinds that would hardly be asked become half again to five times as frequent, and few sentences tell nothing."""
    shares = []
    for aimed in (0.0, passages._AIMED):
        monkeypatch.setattr(passages, "_AIMED", aimed)
        rng = random.Random(0)
        lessons = [ask_about_passage(story, rng, 1, 10) for story in stories]
        kinds = Counter(task.kind for tasks in lessons for task in tasks)
        empty = sum(all(task.kind == "unanswerable" for task in tasks) for tasks in lessons)
        shares.append(({kind: count / kinds.total() for kind, count in kinds.items()}, empty / len(lessons)))
    (chance, empty_by_chance), (share, empty) = shares
    assert empty < 0.05 < 0.12 < empty_by_chance
    for kind in passages._RARELY_TOLD:
        assert share[kind] > 1.5 * chance[kind], kind


def test_who_has_the_thing_is_told_before_the_farewell(stories: list[Story]) -> None:
    """By name where somebody has it; where nobody has, it is lost or was never found."""
    for story in stories:
        facts, sentences = story.facts, sentences_of(story.text)
        (place,) = telling_sentences("holder", facts, facts.hero, facts.holder or "nobody", sentences)
        assert place == len(sentences) - 2
        if facts.holder:
            assert facts.holder in sentences[place]
            assert facts.thing in sentences[place]


def test_a_passage_without_a_length_introduces_both_friends(stories: list[Story]) -> None:
    rng = random.Random(0)
    for story in stories[:200]:
        asked = split_prompt(ask_about_passage(story, rng, None, 9)[0].prompt)
        assert asked is not None
        assert story.text.startswith(asked[0])
        facts, sentences = story.facts, sentences_of(asked[0])
        assert 2 <= len(sentences) <= 3
        assert f"{facts.hero_kind}, {facts.hero_trait}" in sentences[0]
        assert f"{facts.friend_kind}, {facts.friend_trait}" in sentences[-1]


def test_passages_ask_yes_or_no_as_often_as_wished(stories: list[Story]) -> None:
    """Instead of what they would ask otherwise, and about nothing that they do not tell."""
    shares = []
    for wished in (0.0, 0.3, 1.0):
        rng = random.Random(0)
        tasks = [task for story in stories for task in ask_about_passage(story, rng, 3, 9, wished)]
        possible = [
            task.kind for task in tasks if task.kind in ("yes/no", "colour", "place", "holder", "trait")
        ]
        shares.append(possible.count("yes/no") / len(possible))
        for task in tasks:
            if task.kind == "yes/no":
                text, question = split_prompt(task.prompt)  # type: ignore[misc]
                assert task.reply == answer(question, task.story.facts)
                known = re.search(r"(\w+)\.$", task.reply)[1]  # type: ignore[index]
                assert known == "nobody" or known in text
    assert shares[0] == 0
    assert 0.25 < shares[1] < 0.35
    assert shares[2] == 1


def test_conversations_mix_passages_among_whole_stories() -> None:
    lengths = []
    for messages in islice(conversations(seed=2, request_fraction=0.1, passage_fraction=0.5), 1200):
        turns = messages[messages[0]["role"] == "system" :]
        asked = split_prompt(turns[0]["content"])
        lengths.append(0 if asked is None else count_sentences(asked[0]))
    mixed = [length for length in lengths if length]
    assert {1, 2, 3, 4, 5, 6} <= set(mixed) <= set(range(1, 20))
    assert 0.45 < sum(length <= 6 for length in mixed) / len(mixed) < 0.55
    assert 0.1 < mixed.count(1) / len(mixed) < 0.24
    assert 80 < lengths.count(0) < 170
    halves = [sum(0 < length <= 6 for length in half) for half in (lengths[:600], lengths[600:])]
    assert abs(halves[0] - halves[1]) < 60  # from the first to the last
