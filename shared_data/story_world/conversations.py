"""Conversations for instruction tuning: a story, or a passage of one, and several questions about it; or the request for a story.

Several questions about one story teach more per token than one question a story: the story is read once. Only the
first turn contains the story; later questions refer to it. Some conversations begin with a system message, so
that a fine-tuned model has seen one. A part of the replies ends with a superfluous phrase (`wordiness.py`).

    >>> from itertools import islice
    >>> for messages in islice(conversations(seed=0), 1): print(messages[-1])
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from shared_data.story_world.passages import ask_about_passage
from shared_data.story_world.questions import ask_about, split_prompt
from shared_data.story_world.records import Task
from shared_data.story_world.requests import requests
from shared_data.story_world.wordiness import WORDY_FRACTION, wordy
from shared_data.story_world.world import StoryWorld

Message = dict[str, str]
SYSTEM = "You answer questions about stories, and tell stories."
SYSTEM_FRACTION = 0.1
YES_NO = 0.3  # of the questions about a passage that can be yes/no questions


def conversations(
    seed: int = 0,
    split: str = "train",
    questions_per_story: int = 8,
    request_fraction: float = 0.05,
    passage_fraction: float = 0.0,
    wordy_fraction: float = WORDY_FRACTION,
    world: StoryWorld | None = None,
) -> Iterator[list[Message]]:
    """Conversations without end, the same for the same arguments; stories belong to the split.

    `request_fraction` of them request a story. Of the others `passage_fraction` are about a passage: a third about a sentence, a third
    about how the story begins, a third about two to six sentences. What is not yet found in a story can be learned there (`passages.py`).
    """
    rng = random.Random(f"conversations/{seed}/{split}")
    habits = random.Random(f"conversations/wordy/{seed}/{split}")
    world = world or StoryWorld()
    asked_for = requests(seed, split, world)
    for story in world.stories(seed, split):
        messages: list[Message] = []
        if rng.random() < SYSTEM_FRACTION:
            messages.append({"role": "system", "content": SYSTEM})
        if rng.random() < request_fraction:
            task = next(asked_for)
            yield [*messages, *_turn(task.prompt, task.reply)]
            continue
        whole = rng.random() >= passage_fraction
        if whole:
            tasks = ask_about(story, rng, questions_per_story)
        else:
            length = rng.choice((1, None, rng.randint(2, 6)))
            tasks = ask_about_passage(story, rng, length, questions_per_story, YES_NO)
        for turn, task in enumerate(tasks):
            says_more = whole and habits.random() < wordy_fraction
            reply = wordy(task.reply, habits) if says_more else task.reply
            messages += _turn(_follow_up(task) if turn else task.prompt, reply)
        yield messages


def _follow_up(task: Task) -> str:
    """The question alone: the story is in the first turn."""
    parts = split_prompt(task.prompt)
    assert parts is not None, f"not a question: {task.prompt!r}"
    return f"Question: {parts[1]}"


def _turn(prompt: str, reply: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
