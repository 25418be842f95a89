"""Tasks over the stories: every reply is right, every flaw is punished, nothing a model says breaks the reward."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_data.story_world import StoryWorld, rewards
from shared_data.story_world.conversations import conversations
from shared_data.story_world.prompts import prompts
from shared_data.story_world.questions import (
    KINDS,
    ask_about,
    read_question,
    read_statement,
    split_prompt,
)
from shared_data.story_world.requests import count_sentences
from shared_data.story_world.rewards import is_right
from shared_data.story_world.splits import SPLITS, split_of
from shared_data.story_world.tasks import (
    DOES_NOT_SAY,
    PreferencePair,
    answer,
    multiple_choice,
    parse_request,
    preference_pairs,
    question_prompt,
    questions,
    requests,
    reward,
    story_reward,
    verify,
)
from shared_data.story_world.wordiness import FILLERS, plain


@pytest.fixture(scope="module")
def world() -> StoryWorld:
    return StoryWorld()


def test_facts_read_from_the_text_equal_the_facts_tracked_while_telling(world: StoryWorld) -> None:
    for story in islice(world.stories(seed=21, split="test"), 100):
        assert world.read(story.text, "test").facts == story.facts


def test_the_holder_follows_from_the_events(world: StoryWorld) -> None:
    """Replay the events by hand: whoever was given, traded or brought back the thing has it, until it is lost."""
    changed = 0
    for story in islice(world.stories(seed=22), 1000):
        facts, holder = story.facts, None
        for event in facts.events:
            if event.kind in ("play", "give", "trade", "hide", "lose", "mud", "share") and holder:
                assert event.actor == holder, story.text
            if event.kind in ("give", "trade", "return"):
                holder = event.other
            elif event.kind in ("find", "search", "play", "hide", "mud", "share"):
                holder = event.actor
            elif event.kind == "lose":
                holder = None
        if holder:
            changed += 1
            assert facts.holder == holder, story.text
        assert (facts.status == "held") == (facts.holder is not None)
    assert changed > 300


def test_questions_are_answered_from_the_text_and_answers_are_told_in_it(world: StoryWorld) -> None:
    told_literally = {
        "hero",
        "friend",
        "trait",
        "hobby",
        "place",
        "colour",
        "size",
        "feeling",
        "found",
        "count",
        "material",
    }
    kinds: Counter[str] = Counter()
    for task in islice(questions(seed=1, world=world), 2000):
        parts = split_prompt(task.prompt)
        assert parts is not None
        assert answer(parts[1], task.story.facts) == task.reply
        kinds[task.kind] += 1
        if task.kind in told_literally:
            asked = read_question(parts[1], task.story.facts)
            assert asked is not None
            told = KINDS[asked[0]].answer(task.story.facts, asked[1])
            assert told is not None
            assert told in task.reply
            told = told.split()[-1] if task.kind == "place" else told
            assert told.lower() in parts[0].lower(), (parts, task.reply)
    never_told = {"age", "family", "breakfast"}
    assert set(kinds) == set(KINDS) - never_told | {"yes/no", "unanswerable"}
    assert 0.15 < kinds["unanswerable"] / 2000 < 0.25


def test_yes_and_no_are_about_equally_often_right(world: StoryWorld) -> None:
    asked = (task for task in islice(questions(seed=2, world=world), 2000) if task.kind == "yes/no")
    denied = Counter(" not " in task.reply for task in asked)
    assert 0.4 < denied[True] / denied.total() < 0.6


def test_multiple_choice_has_one_right_choice_at_any_place(world: StoryWorld) -> None:
    places: Counter[int] = Counter()
    for task in islice(multiple_choice(seed=1, world=world), 200):
        assert len(set(task.choices)) == 4
        assert task.choices[task.answer] == task.reply
        assert reward(task.prompt, task.choices[(task.answer + 1) % 4]) < 1
        places[task.answer] += 1
    assert min(places[place] for place in range(4)) > 25


def test_requests_are_met_by_their_stories_and_read_back_from_the_prompt(world: StoryWorld) -> None:
    for task in islice(requests(seed=1, world=world), 300):
        request = parse_request(task.prompt)
        assert request is not None
        assert request.prompt == task.prompt
        assert verify(request, task.reply).met
        assert task.story.facts.thing in request.words


def test_the_verifier_finds_whole_words_only() -> None:
    request = parse_request("Write a short story about Mia with the words: kite, red.")
    assert request is not None
    assert verify(request, "Mia had a red kite.").met
    assert verify(request, "Mia had reddish kites.").missing == ("kite", "red")
    assert not verify(request, "Mia had a red kite. " * 10).length_met


@pytest.mark.parametrize("split", SPLITS)
def test_tasks_use_only_combinations_of_their_split(world: StoryWorld, split: str) -> None:
    generators: tuple[Callable[..., Iterator[Any]], ...] = (
        questions,
        requests,
        multiple_choice,
        preference_pairs,
    )
    for generator in generators:
        for record in islice(generator(seed=4, split=split, world=world), 60):
            assert split_of(*record.story.facts.words) == split


def test_the_reward_agrees_with_every_preference_pair(world: StoryWorld) -> None:
    reasons: Counter[str] = Counter()
    for pair in islice(preference_pairs(seed=1, world=world), 400):
        assert reward(pair.prompt, pair.chosen) > reward(pair.prompt, pair.rejected), pair
        assert reward(pair.prompt, pair.chosen) > 0.9
        reasons[pair.reason] += 1
    assert set(reasons) == {
        "wrong answer", "made up", "evasive", "wordy",
        "missing word", "contradiction", "stranger", "unfinished", "repetition",
    }  # fmt: skip


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def test_pairs_about_passages_are_mixed_in_and_leave_the_others_alone(world: StoryWorld) -> None:
    whole = list(islice(preference_pairs(seed=1, world=world), 1000))
    pairs = list(islice(preference_pairs(seed=1, world=world, passage_fraction=0.4), 1000))
    others = [pair for pair in pairs if pair in whole]
    assert others == whole[: len(others)]
    assert 520 < len(others) < 680
    scenes, answers = [], []
    for pair in pairs:
        if pair not in whole:
            (answers if split_prompt(pair.prompt) else scenes).append(pair)
    assert 0.18 < len(scenes) / (len(scenes) + len(answers)) < 0.32
    assert {count_sentences(pair.chosen) for pair in scenes} == {6, 8}
    check_scenes(scenes)
    assert check_passages(answers) == {1, 2, 3}


def check_scenes(pairs: Sequence[PreferencePair]) -> None:
    """The chosen reply is part of a story; in the rejected one somebody or something that it spoke of has become another."""
    for pair in pairs:
        assert pair.chosen in pair.story.text
        said, spoilt = _words(pair.chosen), _words(pair.rejected)
        lost = pair.story.facts.friend if pair.reason == "stranger" else pair.story.facts.thing
        changed = [
            number for number, words in enumerate(zip(said, spoilt, strict=True)) if len(set(words)) > 1
        ]
        assert {said[number] for number in changed} == {lost}, pair
        assert len({spoilt[number] for number in changed}) == 1, pair
        assert lost in spoilt[: changed[0]], pair


def check_passages(pairs: Sequence[PreferencePair]) -> set[int]:
    """The chosen reply is what the passage says, the rejected one is not, and both are well worded. How many sentences there are."""
    for pair in pairs:
        passage = split_prompt(pair.prompt)[0]
        assert passage in pair.story.text
        assert (pair.chosen == DOES_NOT_SAY) == (pair.reason == "made up")
        assert (pair.rejected == DOES_NOT_SAY) == (pair.reason == "evasive")
        if pair.kind in ("colour", "size", "hobby", "food") and pair.reason == "wrong answer":
            told = KINDS[pair.kind].answer(pair.story.facts, pair.story.facts.hero)
            assert told in pair.chosen, pair
            assert told not in pair.rejected, pair
            assert told.split()[-1] in passage, pair
    return {count_sentences(split_prompt(pair.prompt)[0]) for pair in pairs}


def test_the_reward_of_an_answer_grades_its_wording(world: StoryWorld) -> None:
    story = next(world.stories(seed=1, split="test"))
    prompt = question_prompt(story.text, f"What colour is the {story.facts.thing}?")
    right = f"The colour of the {story.facts.thing} is {story.facts.colour}"
    assert reward(prompt, f"{right}.") == 1.0
    assert reward(prompt, right.lower()) == 0.8
    assert reward(prompt, f"Well, I think: {right}!") == 0.5
    assert reward(prompt, f"The colour of the {story.facts.thing} is bright.") == 0.0
    assert reward(prompt, DOES_NOT_SAY) == 0.0
    unanswerable = question_prompt(story.text, f"How old is {story.facts.hero}?")
    assert reward(unanswerable, DOES_NOT_SAY) == 1.0
    assert reward(unanswerable, "Seven.") == 0.0
    for filler in FILLERS:
        assert reward(prompt, f"{right}. {filler}") == reward(unanswerable, f"{DOES_NOT_SAY} {filler}") == 0.5
        assert reward(prompt, f"{DOES_NOT_SAY} {filler}") == reward(prompt, filler) == 0.0
    assert reward(unanswerable, f"{DOES_NOT_SAY} {right}.") == 0.0
    for said, judged in ((f"{right}.", True), (f"{right}. {FILLERS[0]}", True), (DOES_NOT_SAY, False)):
        assert is_right(prompt, said) is judged
    assert is_right("Write a story with the words: kite, red.", f"{right}.") is None


def test_each_component_of_the_reward_of_a_story_moves(world: StoryWorld) -> None:
    story = next(world.stories(seed=1))
    request = parse_request(f"Write a story with the words: {story.facts.thing}, {story.facts.place}.")
    best = story_reward(request, story.text)
    assert best.total == pytest.approx(0.8 + 0.2 * best.variety)
    assert story_reward(request, story.text.replace(story.facts.thing, "zebra")).words == 0.5
    assert story_reward(request, story.text[:60]).length == 0
    assert story_reward(request, story.text[1:-1]).form < 1
    assert story_reward(request, story.text * 3).variety < 0.5
    assert story_reward(request, story.text.replace(".", " zzz.")).consistency < best.consistency


@settings(max_examples=150, deadline=None)
@given(prompt=st.text(), reply=st.text())
def test_the_reward_never_raises_and_stays_in_range(prompt: str, reply: str) -> None:
    for asked in (prompt, f"{prompt}\nQuestion: {reply}", f"Write a story with the words: {prompt}."):
        assert 0.0 <= reward(asked, reply) <= 1.0


def test_the_same_seed_gives_the_same_records(world: StoryWorld) -> None:
    for generator in (questions, requests, multiple_choice, preference_pairs):
        first, again = (list(islice(generator(seed=9, world=world), 10)) for _ in range(2))
        assert first == again


def test_a_lesson_asks_of_everything_that_stories_tell(world: StoryWorld) -> None:
    """Of what few stories tell more often than the exam does, a sixth of what is not told, and a quarter of yes or no."""
    rng = random.Random(0)
    stories = list(islice(world.stories(seed=3), 600))
    lessons = [ask_about(story, rng, 8) for story in stories]
    kinds = Counter(task.kind for lesson in lessons for task in lesson)
    exam = Counter(task.kind for task in islice(questions(seed=3, world=world), 4800))
    total = kinds.total()
    assert total > 7.8 * len(stories)
    assert all(len({task.prompt for task in lesson}) == len(lesson) for lesson in lessons)
    for kind in ("food", "count", "trade", "helped", "material", "building"):
        assert kinds[kind] / total > 1.2 * exam[kind] / 4800, kind
    assert kinds["unanswerable"] / total == pytest.approx(1 / 6, abs=0.02)
    assert kinds["yes/no"] / total == pytest.approx(1 / 4, abs=0.03)
    assert all(
        task.kind in ("unanswerable", "yes/no") or task.answerable for lesson in lessons for task in lesson
    )


def test_a_lesson_asks_for_no_fact_twice(world: StoryWorld) -> None:
    """Its answer would stand in an earlier reply. A yes/no question asks for the fact behind it."""
    rng = random.Random(0)
    yes_no, traits = 0, Counter[str]()
    for story in islice(world.stories(seed=4), 300):
        facts, asked = story.facts, []
        for task in ask_about(story, rng, 10):
            _, question = split_prompt(task.prompt)  # type: ignore[misc]
            if task.kind == "yes/no":
                statement, _ = read_statement(question, facts)  # type: ignore[misc]
                asked.append((statement.kind, getattr(facts, statement.about)))
                yes_no += 1
            elif task.answerable:
                asked.append(read_question(question, facts))
        traits.update(kind for kind, _ in asked if kind in ("trait", "species"))
        told = [("species", name) if kind == "trait" else (kind, name) for kind, name in asked]
        assert len(set(told)) == len(told) >= 4  # the reply about a trait tells the species, too
    assert traits["trait"] > 2 * traits["species"] > 50
    assert 1.8 < yes_no / 300 < 2.8


def test_a_part_of_the_replies_in_conversations_says_more_than_was_asked_for() -> None:
    """The rest is the same; requested stories, answers about passages and held-out questions are always plain."""
    wordless, wordy = (
        [
            message
            for messages in islice(conversations(seed=1, wordy_fraction=part), 300)
            for message in messages
        ]
        for part in (0.0, 0.4)
    )
    replies = [
        (a["content"], b["content"])
        for a, b in zip(wordless, wordy, strict=True)
        if a["role"] == "assistant" and len(a["content"]) < 200
    ]
    assert all(short == plain(long) for short, long in replies)
    assert sum(short != long for short, long in replies) / len(replies) == pytest.approx(0.4, abs=0.03)
    assert [a for a, b in zip(wordless, wordy, strict=True) if a["role"] != "assistant"] == [
        b for b in wordy if b["role"] != "assistant"
    ]
    assert all(task.reply == plain(task.reply) for task in islice(questions(seed=1), 300))
    for messages in islice(
        conversations(seed=1, request_fraction=0.0, passage_fraction=1.0, wordy_fraction=1.0), 100
    ):
        assert all(message["content"] == plain(message["content"]) for message in messages)


def test_prompts_mix_questions_and_requests_of_their_split(world: StoryWorld) -> None:
    drawn = list(islice(prompts(seed=2, split="test", question_fraction=0.3, world=world), 300))
    asked = [text for prompt in drawn if (text := split_prompt(prompt))]
    assert 60 < len(asked) < 120
    for text, _ in asked:
        assert world.read(text, "test")
    assert all(split_prompt(prompt) or parse_request(prompt) for prompt in drawn)
    assert drawn == list(islice(prompts(seed=2, split="test", question_fraction=0.3, world=world), 300))


def test_conversations_ask_several_questions_about_one_story_and_answer_them_right(world: StoryWorld) -> None:
    kinds: Counter[str] = Counter()
    options = {"questions_per_story": 4, "request_fraction": 0.2, "wordy_fraction": 0.0}
    for messages in islice(conversations(seed=5, **options), 200):
        kinds["system"] += messages[0]["role"] == "system"
        turns = messages[messages[0]["role"] == "system" :]
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        if request := parse_request(turns[0]["content"]):
            kinds["request"] += 1
            assert verify(request, turns[1]["content"]).met
            continue
        asked = split_prompt(turns[0]["content"])
        assert asked is not None
        facts = world.read(asked[0]).facts
        assert len({turn["content"] for turn in turns[::2]}) == len(turns) // 2 <= 4
        for question, said in zip(turns[::2], turns[1::2], strict=True):
            text = question["content"].rpartition("Question: ")[2]
            assert said["content"] == answer(text, facts)
    assert 5 < kinds["system"] < 40
    assert 20 < kinds["request"] < 60
    again = list(islice(conversations(seed=5), 3))
    assert again == list(islice(conversations(seed=5), 3)) != list(islice(conversations(seed=6), 3))


def test_a_drawn_prompt_has_its_story_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reward then needs no reading back, and is the same; no more stories are kept than wished."""
    drawn = list(islice(prompts(seed=5, question_fraction=1.0), 20))
    with monkeypatch.context() as patch:
        patch.setattr(rewards, "_read_back", lambda text: pytest.fail(f"read back: {text}"))
        remembered = [rewards.right_answer(prompt) for prompt in drawn]
    monkeypatch.setattr(rewards, "_stories", {})
    assert remembered == [rewards.right_answer(prompt) for prompt in drawn]
    monkeypatch.setattr(rewards, "_REMEMBERED", 10)
    list(islice(prompts(seed=6), 30))
    assert len(rewards._stories) <= 20
    assert rewards.right_answer(drawn[0]) == remembered[0]
