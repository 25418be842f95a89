"""Prompts alone, for stages that sample completions: questions about stories, and requests for a story.

`rewards.py` scores a completion from the two texts.

    >>> from itertools import islice
    >>> list(islice(prompts(seed=0, question_fraction=0.0), 1))
    ['Write a story with the words: ducks, violin, badger, six.']
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from shared_data.story_world.questions import questions
from shared_data.story_world.requests import requests
from shared_data.story_world.rewards import remember_story
from shared_data.story_world.world import StoryWorld


def prompts(
    seed: int = 0, split: str = "train", question_fraction: float = 0.5, world: StoryWorld | None = None
) -> Iterator[str]:
    """Prompts without end, the same for the same arguments; their stories belong to the split."""
    rng = random.Random(f"prompts/{seed}/{split}")
    world = world or StoryWorld()
    question_tasks, request_tasks = questions(seed, split, world), requests(seed, split, world)
    while True:
        if rng.random() < question_fraction:
            task = next(question_tasks)
            remember_story(task.story.text, task.story)  # the reward needs its facts
        else:
            task = next(request_tasks)
        yield task.prompt
