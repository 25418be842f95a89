"""Preference pairs: two completions of one prompt, and what is wrong with the worse one.

The rejected completion is the chosen one with a single flaw, named by `reason`:

    questions   wrong answer · made up (the story does not say) · evasive (it does) · wordy (`wordiness.py`)
    requests    missing word · contradiction (the thing becomes another) · stranger (a name from nowhere)
                unfinished · repetition

The programmatic reward (`rewards.py`) agrees with every pair about a story, which a test checks.

To find a wrong word, a reward model must compare it with another one. It learns this much sooner from short texts, so a
part of the pairs may be about passages: answers about a few sentences, and scenes of six or eight sentences.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from shared_data.story_world.lexicon import NAMES, THINGS
from shared_data.story_world.passages import ask_about_passage
from shared_data.story_world.questions import POOLS, questions, reply_with, wrong_answers, wrong_verdict
from shared_data.story_world.records import DOES_NOT_SAY, PreferencePair, Task
from shared_data.story_world.requests import parse_request, requests, sentences_of
from shared_data.story_world.wordiness import wordy
from shared_data.story_world.world import StoryWorld

_WORDY = 0.25  # of the rejected answers about stories are right, and say more than they should
_PASSAGE_LENGTHS = (1, 1, 2, 3)  # in sentences
_PASSAGE_QUESTIONS = 4  # about one passage, at most
_PASSAGE_YES_NO = 0.2
_SCENES = 0.25  # of the pairs about passages are scenes
_SCENE_LENGTHS = (6, 8)  # in sentences


def _wrong_answer(task: Task, rng: random.Random, wordy_fraction: float = _WORDY) -> tuple[str, str]:
    """(rejected reply, reason) for a question."""
    if rng.random() < wordy_fraction:
        return wordy(task.reply, rng), "wordy"
    if task.kind == "yes/no":
        return wrong_verdict(task, rng), "wrong answer"
    if task.kind == "unanswerable":
        kind = rng.choice(("colour", "hero", "place", "trait", "food"))
        facts = task.story.facts
        return reply_with(kind, facts, facts.hero, rng.choice(POOLS[kind](facts))), "made up"
    if rng.random() < 0.25:
        return DOES_NOT_SAY, "evasive"
    return wrong_answers(task, rng, 1)[0], "wrong answer"


# Flaws of a story. Each returns the spoilt text, or None where it cannot be applied.


def _without_a_word(task: Task, rng: random.Random) -> str | None:
    """Drop every sentence that holds one of the required words."""
    request = parse_request(task.prompt)
    assert request is not None, f"not a request: {task.prompt!r}"
    word = rng.choice(request.words)
    kept = [part for part in sentences_of(task.reply) if not re.search(rf"\b{word}\b", part, re.IGNORECASE)]
    return " ".join(kept) if len(kept) >= 4 else None


def _with_another_thing(task: Task, rng: random.Random) -> str | None:
    """The last time it is mentioned, the main thing is another one."""
    thing = task.story.facts.thing
    before, mention, after = task.reply.rpartition(f"the {thing}")
    if f" {thing}" not in before:
        return None
    return (
        f"{before}the {rng.choice([other for other in THINGS if other != thing])}{after}" if mention else None
    )


def _with_a_stranger(task: Task, rng: random.Random) -> str | None:
    """Somebody else takes the friend's place halfway."""
    friend = task.story.facts.friend
    stranger = rng.choice([name for name in NAMES if name not in (friend, task.story.facts.hero)])
    parts = sentences_of(task.reply)
    half = len(parts) // 2
    spoilt = [re.sub(rf"\b{friend}\b", stranger, part) for part in parts[half:]]
    return " ".join(parts[:half] + spoilt) if spoilt != parts[half:] else None


def _unfinished(task: Task, rng: random.Random) -> str | None:
    """Cut off in the middle of a sentence."""
    words = task.reply.split()
    cut = words[: rng.randrange(len(words) // 3, 2 * len(words) // 3)]
    return " ".join(cut).rstrip('.!?",') or None


def _repetitive(task: Task, rng: random.Random) -> str | None:
    """The beginning, and then one sentence again and again."""
    parts = sentences_of(task.reply)
    return " ".join(parts[:2] + [rng.choice(parts[2:4])] * (len(parts) - 2))


FLAWS: dict[str, Callable[[Task, random.Random], str | None]] = {
    "missing word": _without_a_word,
    "contradiction": _with_another_thing,
    "stranger": _with_a_stranger,
    "unfinished": _unfinished,
    "repetition": _repetitive,
}


def preference_pairs(
    seed: int = 0,
    split: str = "train",
    world: StoryWorld | None = None,
    question_fraction: float = 0.5,
    passage_fraction: float = 0.0,
) -> Iterator[PreferencePair]:
    """Pairs without end, about questions and requests: in turn, or so that questions are this share of them.

    `passage_fraction` of all pairs are about passages: answers about one to three sentences, and scenes of six or eight. The pairs about
    whole stories are the same with and without.
    """
    rng = random.Random(f"preferences/{seed}/{split}")
    choice = random.Random(f"preferences/kind/{seed}/{split}")
    mixture = random.Random(f"preferences/mixture/{seed}/{split}")
    world = world or StoryWorld()
    answers, scenes = _passage_pairs(seed, split, world), _scene_pairs(seed, split, world)
    question_pairs, request_pairs = (
        _question_pairs(seed, split, world, rng),
        _request_pairs(seed, split, world, rng),
    )
    number = 0
    while True:
        if mixture.random() < passage_fraction:
            yield next(scenes if mixture.random() < _SCENES else answers)
            continue
        about_question = number % 2 == 0 if question_fraction == 0.5 else choice.random() < question_fraction
        yield next(question_pairs if about_question else request_pairs)
        number += 1


def _passage_pairs(seed: int, split: str, world: StoryWorld) -> Iterator[PreferencePair]:
    rng = random.Random(f"preferences/passages/{seed}/{split}")
    for story in world.stories(seed, split):
        length = rng.choice(_PASSAGE_LENGTHS)
        for task in ask_about_passage(story, rng, length, _PASSAGE_QUESTIONS, _PASSAGE_YES_NO):
            rejected, reason = _wrong_answer(task, rng, wordy_fraction=0)
            yield PreferencePair(task.kind, task.prompt, task.reply, rejected, reason, task.story)


def _scene_pairs(seed: int, split: str, world: StoryWorld) -> Iterator[PreferencePair]:
    """Some sentences of a story in a row, and the same where the main thing or the friend is another one in the end.

    A story that has no such scene is left out.
    """
    rng = random.Random(f"preferences/scenes/{seed}/{split}")
    reason = rng.choice(("contradiction", "stranger"))
    for task in requests(seed + 1, split, world):  # other stories than those of whole replies
        parts = sentences_of(task.reply)
        length = min(rng.choice(_SCENE_LENGTHS), len(parts))
        starts = list(range(len(parts) - length + 1))
        rng.shuffle(starts)
        for start in starts:
            if reason == "stranger" and task.story.facts.friend not in " ".join(
                parts[start : start + length // 2]
            ):
                continue
            scene = replace(task, reply=" ".join(parts[start : start + length]))
            if spoilt := FLAWS[reason](scene, rng):
                yield PreferencePair(scene.kind, scene.prompt, scene.reply, spoilt, reason, scene.story)
                reason = rng.choice(("contradiction", "stranger"))
                break


def _question_pairs(seed: int, split: str, world: StoryWorld, rng: random.Random) -> Iterator[PreferencePair]:
    for task in questions(seed, split, world):
        rejected, reason = _wrong_answer(task, rng)
        yield PreferencePair(task.kind, task.prompt, task.reply, rejected, reason, task.story)


def _request_pairs(seed: int, split: str, world: StoryWorld, rng: random.Random) -> Iterator[PreferencePair]:
    for task in requests(seed, split, world):
        flaws = list(FLAWS)
        rng.shuffle(flaws)
        reason, spoilt = next((flaw, text) for flaw in flaws if (text := FLAWS[flaw](task, rng)))
        yield PreferencePair(task.kind, task.prompt, task.reply, spoilt, reason, task.story)
