"""Conversations for instruction tuning: a story, or a passage of one, and several questions about it; or the request for a story.

Asking several questions about one story teaches more per token than one question a story: the story is read once. Only the
first turn carries the story; the questions after it refer back to it. Some conversations begin with a system message, so
that a tuned model has seen one. A part of the replies to questions says more than it should (`wordiness.py`).

    >>> from itertools import islice
    >>> for messages in islice(conversations(seed=0), 1): print(messages[-1])
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from shared_data.story_world.passages import ask_about_introduction, ask_about_passage
from shared_data.story_world.questions import ask_about, split_prompt
from shared_data.story_world.records import Task
from shared_data.story_world.requests import requests
from shared_data.story_world.wordiness import WORDY_FRACTION, wordy
from shared_data.story_world.world import StoryWorld

Message = dict[str, str]
SYSTEM = "You answer questions about stories, and tell stories."
SYSTEM_FRACTION = 0.1
INTRODUCTIONS = 0.5  # of the first passages, before the others: who is who
SENTENCES = 0.65  # of the other first passages are a single sentence; the rest tell how a story begins
YES_NO = 0.3  # of what a passage tells and can be asked so; not of the single sentences that come first


def conversations(
    seed: int = 0,
    split: str = "train",
    questions_per_story: int = 8,
    request_fraction: float = 0.05,
    passages: int = 0,
    passage_fraction: float = 0.0,
    wordy_fraction: float = WORDY_FRACTION,
    world: StoryWorld | None = None,
) -> Iterator[list[Message]]:
    """Conversations without end, the same for the same arguments; stories belong to the split.

    The first `passages` of them ask who one of the two friends is, and later about a sentence, or about how a story begins. None requests
    a story: a request is a hundred words of which most are a matter of chance, and would drown what is to be learned here. The world's
    easy lessons come first, and so whoever wants them as a curriculum must not shuffle. Of the others `passage_fraction` are about
    passages, too: what is not yet found in a sentence can still be learned there. A third of these are a sentence, a third a beginning, a
    third have two to six sentences.
    """
    rng = random.Random(f"conversations/{seed}/{split}")
    habits = random.Random(f"conversations/wordy/{seed}/{split}")
    world = world or StoryWorld()
    asked_for = requests(seed, split, world)
    for number, story in enumerate(world.stories(seed, split)):
        messages: list[Message] = []
        if rng.random() < SYSTEM_FRACTION:
            messages.append({"role": "system", "content": SYSTEM})
        first = number < passages
        if not first and rng.random() < request_fraction:
            task = next(asked_for)
            yield [*messages, *_turn(task.prompt, task.reply)]
            continue
        whole = not first and rng.random() >= passage_fraction
        if number < INTRODUCTIONS * passages:
            tasks = [ask_about_introduction(story, rng)]
        elif whole:
            tasks = ask_about(story, rng, questions_per_story)
        elif first and rng.random() < SENTENCES:
            tasks = ask_about_passage(story, rng, 1, questions_per_story)
        else:
            length = None if first else rng.choice((1, None, rng.randint(2, 6)))
            tasks = ask_about_passage(story, rng, length, questions_per_story, YES_NO)
        for turn, task in enumerate(tasks):
            says_more = whole and habits.random() < wordy_fraction
            reply = wordy(task.reply, habits) if says_more else task.reply
            messages += _turn(_follow_up(task) if turn else task.prompt, reply)
        yield messages


def _follow_up(task: Task) -> str:
    """The question alone: the story was told in the first turn."""
    asked = split_prompt(task.prompt)
    assert asked is not None, f"not a question: {task.prompt!r}"
    return f"Question: {asked[1]}"


def _turn(prompt: str, reply: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
