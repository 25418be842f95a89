"""Prompts for PPO, GRPO and the evaluation of a policy, from the story world or a user's files.

train, held_out = open_prompts(settings, "grpo", tokenizer, model.config.max_position_embeddings)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from shared_data.corpus.records import open_records
from shared_data.errors import UserError
from shared_data.inference.prompts import encode_chat
from shared_data.settings import OnlineSettings, PolicyEvaluationSettings, Settings
from shared_data.tokenizer.tokenizer import Tokenizer
from shared_data.training.data_order import DataOrder

HELD_OUT_PART = 10  # of a user's prompts, one in so many is held out

NamedPrompt = tuple[str, str]  # the words that name it in an error, and its text


def read_prompts(settings: Settings, stage: str) -> tuple[list[NamedPrompt], list[NamedPrompt]]:
    """Prompts of a stage to train on, and held-out ones for its evaluation. Raises `UserError` naming the record that is wrong."""
    section: OnlineSettings = getattr(settings, stage)
    if section.source == "story_world":
        train = _story_world_prompts(section, section.seed, "train", section.prompts)
        return train, _held_out_of_the_story_world(section)
    data = settings.data.model_copy(
        update={"source": section.source, "hub_config": None, "hub_split": "train"}
    )
    records = islice(open_records(data), section.prompts)
    prompts = [(where, _prompt(record, where)) for where, record in records]
    train = [prompt for number, prompt in enumerate(prompts) if number % HELD_OUT_PART] or prompts
    return train, prompts[::HELD_OUT_PART][: section.eval_prompts]


def open_prompts(
    settings: Settings, stage: str, tokenizer: Any, positions: int
) -> tuple[list[str], list[str]]:
    """The texts of `read_prompts`, all of which leave room for a completion in the model's positions.

    Raises `UserError` naming the record that is wrong or too long: before the first step, since a training that meets it in one of its
    batches could never be finished.
    """
    train, held_out = read_prompts(settings, stage)
    check_lengths([*train, *held_out], settings, stage, tokenizer, positions)
    return [text for _, text in train], [text for _, text in held_out]


def evaluation_prompts(settings: Settings, stage: str, tokenizer: Any, positions: int) -> list[str]:
    """The story world's held-out prompts, the same for every stage of the same sizes. Raises `UserError` for one that is too long."""
    held_out = _held_out_of_the_story_world(getattr(settings, stage))
    check_lengths(held_out, settings, stage, tokenizer, positions)
    return [text for _, text in held_out]


def check_lengths(
    prompts: Iterable[NamedPrompt], settings: Settings, stage: str, tokenizer: Any, positions: int
) -> None:
    """Raise `UserError` for the first prompt that exceeds the model's positions together with its completion."""
    length = getattr(settings, stage).max_completion_length
    for where, text in prompts:
        (ids,) = encode_prompts(tokenizer, [text])
        if len(ids) + length > positions:
            raise UserError(
                f"{where}: the prompt of {len(ids)} tokens and a completion of up to {length} exceed the model's {positions} "
                f"positions; shorten or remove the prompt, or lower {stage}.max_completion_length"
            )


def _held_out_of_the_story_world(section: PolicyEvaluationSettings) -> list[NamedPrompt]:
    return _story_world_prompts(section, 0, "test", section.eval_prompts)


def _story_world_prompts(
    section: PolicyEvaluationSettings, seed: int, split: str, count: int
) -> list[NamedPrompt]:
    from shared_data.story_world.prompts import prompts

    found = islice(prompts(seed, split, section.question_fraction), count)
    return [(f"prompt {number:,} of the story world", text) for number, text in enumerate(found)]


def _prompt(record: dict[str, Any], where: str) -> str:
    prompt = record.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{where} has no text 'prompt'; write one, or remove the record")
    return prompt


def encode_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Each prompt as the first turn of a conversation, up to where the completion begins."""
    return [encode_chat(tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of one update, as texts and as ids, and the seed of all that is drawn at random in it."""

    prompts: list[str]
    ids: list[list[int]]
    seed: int


class PromptBatches:
    """Endless batches of `batch_size` prompts; in an epoch each comes once."""

    def __init__(self, prompts: Sequence[str], tokenizer: Tokenizer, batch_size: int, seed: int) -> None:
        self.prompts, self.tokenizer = prompts, tokenizer
        self.batch_size, self.seed = batch_size, seed
        self.order = DataOrder(len(prompts), seed)

    def next_batch(self) -> PromptBatch:
        """The next prompts; the seed depends on the place in the data only, so a resumed run draws the same."""
        seed = self.seed * 1_000_003 + self.order.epoch * self.order.size + self.order.position
        prompts = [self.prompts[i] for i in self.order.take(self.batch_size)]
        return PromptBatch(prompts, encode_prompts(self.tokenizer, prompts), seed)
