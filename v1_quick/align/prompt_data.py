"""Prompts to learn on and prompts for the exam: from the story world, or a user's own; and the reward that grades replies.

A prompt is the first turn of a conversation, as a text. Those of the exam are held out: of the story world, their stories
belong to the test split; of a user's records, every tenth.

The same at all levels.

    prompts, held_out = open_prompts(settings, "grpo")
"""

from itertools import islice
from typing import Any

from shared_data.reward_functions import RewardFunction, load_reward_function

from shared_data.corpus.records import open_records
from shared_data.errors import UserError
from shared_data.settings import ExamSettings, PolicySettings, Settings

HELD_OUT_PART = 10  # of a user's records, one in so many is for the exam


def open_prompts(settings: Settings, stage: str) -> tuple[list[str], list[str]]:
    """Prompts of a stage to learn on, and others for its exam. Raises `UserError` naming the record that is wrong."""
    section: PolicySettings = getattr(settings, stage)
    if section.source == "story_world":
        return story_world_prompts(section, section.seed, "train", section.prompts), exam_prompts(
            settings, stage
        )
    data = settings.data.model_copy(
        update={"source": section.source, "hub_config": None, "hub_split": "train"}
    )
    found = [_prompt(record, where) for where, record in islice(open_records(data), section.prompts)]
    held_out = found[::HELD_OUT_PART][: section.test_prompts]
    return [prompt for i, prompt in enumerate(found) if i % HELD_OUT_PART] or found, held_out


def exam_prompts(settings: Settings, stage: str) -> list[str]:
    """The story world's prompts for the exam of a stage, the same for every stage of the same seed and sizes."""
    section: ExamSettings = getattr(settings, stage)
    return story_world_prompts(section, 0, "test", section.test_prompts)


def story_world_prompts(section: ExamSettings, seed: int, split: str, count: int) -> list[str]:
    """Questions about stories and requests for stories, as many of each as the settings ask for."""
    from shared_data.story_world.prompts import prompts

    return list(islice(prompts(seed, split, section.question_fraction), count))


def open_reward(reference: str) -> RewardFunction:
    """The reward function that a setting names: `story_world`, or a user's own as FILE.py:FUNCTION."""
    if reference != "story_world":
        return load_reward_function(reference)
    from shared_data.story_world.tasks import reward

    return lambda prompts, replies: [
        reward(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)
    ]


def _prompt(record: dict[str, Any], where: str) -> str:
    """The text of a record's `prompt`."""
    prompt = record.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{where} has no text 'prompt'; write one, or remove the record")
    return prompt
