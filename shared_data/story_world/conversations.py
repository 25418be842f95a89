"""Conversations for instruction tuning: a story, or a passage of one, and several questions about it; or the request for a story.

Asking several questions about one story teaches more per token than one question a story: the story is read once. Only the
first turn carries the story; the questions after it refer back to it. Some conversations begin with a system message, so
that a tuned model has seen one.

    >>> from itertools import islice
    >>> for messages in islice(conversations(seed=0), 1): print(messages[-1])
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from shared_data.story_world.passages import ask_about_passage
from shared_data.story_world.questions import ask_about, split_prompt
from shared_data.story_world.requests import requests
from shared_data.story_world.world import StoryWorld

Message = dict[str, str]
SYSTEM = "You answer questions about stories, and tell stories."
SYSTEM_FRACTION = 0.1


def conversations(
    seed: int = 0,
    split: str = "train",
    questions_per_story: int = 8,
    request_fraction: float = 0.05,
    passage_fraction: float = 0.0,
    world: StoryWorld | None = None,
) -> Iterator[list[Message]]:
    """Conversations without end, the same for the same arguments; stories belong to the split.

    Of those that ask questions, a share of `passage_fraction` is about a passage: half of these about one sentence, a quarter about
    two, an eighth about three, and so on.
    """
    rng = random.Random(f"conversations/{seed}/{split}")
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
        if passage_fraction and rng.random() < passage_fraction:
            length = 1 + int(-math.log2(1 - rng.random()))
            tasks = ask_about_passage(story, rng, length, questions_per_story)
        else:
            tasks = ask_about(story, rng, questions_per_story)
        messages += _turn(tasks[0].prompt, tasks[0].reply)
        for task in tasks[1:]:
            asked = split_prompt(task.prompt)
            assert asked is not None, f"not a question: {task.prompt!r}"
            messages += _turn(f"Question: {asked[1]}", task.reply)
        yield messages


def _turn(prompt: str, reply: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
