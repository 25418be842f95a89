"""Prompts for PPO, GRPO and the evaluation of a policy, from the story world or a user's files.

train, held_out = open_prompts(settings, "grpo", tokenizer, model.config.max_position_embeddings)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from shared_data.alignment.reward_values import Rewards
from shared_data.alignment.rewards import RewardFunction, score_completions
from shared_data.corpus.bad_records import BadRecords
from shared_data.corpus.formatting import format_prompt
from shared_data.corpus.records import open_records
from shared_data.corpus.turns import Message
from shared_data.corpus.used_fields import name_unused, template_source, used_fields
from shared_data.errors import UserError
from shared_data.inference.prompts import encode_chat
from shared_data.settings import OnlineSettings, PolicyEvaluationSettings, Settings
from shared_data.tokenizer.tokenizer import Tokenizer
from shared_data.training.chat_data import check_content, texts_in
from shared_data.training.data_order import DataOrder

HELD_OUT_PART = 10  # of a user's prompts, one in so many is held out
# What reward functions are given anyway.
_OURS = ("prompt", "prompts", "completion", "completions", "completion_ids")


@dataclass(frozen=True)
class Prompt:
    """What a completion continues: a text, which is the user's only turn, or several turns.

    columns: what its record has beside it, for reward functions.  where: the words that name it in an error.
    """

    value: str | list[Message]
    columns: Mapping[str, Any] = field(default_factory=dict)
    where: str = "the prompt"

    @property
    def messages(self) -> list[Message]:
        """Its turns."""
        return [{"role": "user", "content": self.value}] if isinstance(self.value, str) else self.value

    @property
    def text(self) -> str:
        """For people to read."""
        if isinstance(self.value, str):
            return self.value
        return "\n".join(f"{message['role']}: {message['content']}" for message in self.value)


def read_prompts(
    settings: Settings,
    stage: str,
    check: Callable[[Prompt], Any] = lambda prompt: None,
    bad: BadRecords | None = None,
) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts of a stage to train on, and held-out ones for its evaluation. Raises `UserError` naming the record that is wrong.

    check: raises `UserError` for a prompt that cannot be used.  bad: counts what was read and skipped.
    """
    section: OnlineSettings = getattr(settings, stage)
    if section.source == "story_world":
        train = _story_world_prompts(section, section.seed, "train", section.prompts)
        held_out = _held_out_of_the_story_world(section)
        for prompt in (*train, *held_out):
            check(prompt)
        return train, held_out
    bad, prompts = bad or BadRecords(section.on_bad_record), []
    records = open_records(settings.data, section.source, bad)
    with bad.reported(section.source):
        for where, record in bad.up_to(section.prompts, f"{stage}.prompts", records):
            found = bad.attempt(_prompt, record, where, section.columns)
            if found is not None and bad.is_good(check, found):
                prompts.append(found)
    if not prompts:
        raise UserError(f"{section.source} has no prompt that can be used; correct the records")
    train = [prompt for number, prompt in enumerate(prompts) if number % HELD_OUT_PART] or prompts
    return train, prompts[::HELD_OUT_PART][: section.eval_prompts]


def open_prompts(
    settings: Settings, stage: str, tokenizer: Any, positions: int, bad: BadRecords | None = None
) -> tuple[list[Prompt], list[Prompt]]:
    """Those of `read_prompts`, all of which leave room for a completion in the model's positions.

    Raises `UserError` naming the record that is wrong or too long: before the first step, since a training that meets it in one of its
    batches could never be finished.
    """

    bad = bad or BadRecords(getattr(settings, stage).on_bad_record)
    used = used_fields(template_source(tokenizer))

    def check(prompt: Prompt) -> None:
        check_content(texts_in(prompt.messages), control_tokens(tokenizer), prompt.where)
        check_length(prompt, settings, stage, tokenizer, positions)
        name_unused(prompt.messages, None, used, bad)

    return read_prompts(settings, stage, check, bad)


def control_tokens(tokenizer: Any) -> Iterable[str]:
    """The tokens that a chat template writes itself, of our tokenizer or of transformers'."""
    return tokenizer.special_tokens if isinstance(tokenizer, Tokenizer) else tokenizer.get_added_vocab()


def evaluation_prompts(settings: Settings, stage: str, tokenizer: Any, positions: int) -> list[Prompt]:
    """The story world's held-out prompts, the same for every stage of the same sizes. Raises `UserError` for one that is too long."""
    held_out = _held_out_of_the_story_world(getattr(settings, stage))
    for prompt in held_out:
        check_length(prompt, settings, stage, tokenizer, positions)
    return held_out


def check_length(prompt: Prompt, settings: Settings, stage: str, tokenizer: Any, positions: int) -> None:
    """Raise `UserError` for a prompt that exceeds the model's positions together with its completion."""
    length = getattr(settings, stage).max_completion_length
    (ids,) = encode_prompts(tokenizer, [prompt])
    if len(ids) + length > positions:
        raise UserError(
            f"{prompt.where}: the prompt of {len(ids)} tokens and a completion of up to {length} exceed the model's {positions} "
            f"positions; shorten or remove the prompt, or lower {stage}.max_completion_length"
        )


def _held_out_of_the_story_world(section: PolicyEvaluationSettings) -> list[Prompt]:
    return _story_world_prompts(section, 0, "test", section.eval_prompts)


def _story_world_prompts(
    section: PolicyEvaluationSettings, seed: int, split: str, count: int
) -> list[Prompt]:
    from shared_data.story_world.prompts import prompts

    found = islice(prompts(seed, split, section.question_fraction), count)
    return [Prompt(text, where=f"prompt {number:,} of the story world") for number, text in enumerate(found)]


def _prompt(record: dict[str, Any], where: str, columns: Mapping[str, str]) -> Prompt:
    messages = format_prompt(record, where, columns)
    name = columns.get("prompt", "prompt")
    is_text = len(messages) == 1 and isinstance(record[name], str)
    others = {key: value for key, value in record.items() if key not in (*_OURS, name)}
    return Prompt(messages[0]["content"] if is_text else messages, others, where)


def encode_prompts(tokenizer: Any, prompts: Sequence[Prompt | str]) -> list[list[int]]:
    """Each prompt, a text as the first turn of a conversation, up to where the completion begins."""
    return [encode_chat(tokenizer, as_prompt(prompt).messages) for prompt in prompts]


def as_prompt(prompt: Prompt | str) -> Prompt:
    """A text is a prompt without columns."""
    return Prompt(prompt) if isinstance(prompt, str) else prompt


def score_prompts(
    reward: RewardFunction,
    prompts: Iterable[Prompt | str],
    completions: Sequence[str],
    completion_ids: Sequence[Sequence[int]] | None = None,
) -> Rewards:
    """The rewards of completions. As TRL does, a prompt of several turns is handed over as messages, and so is its completion."""
    given = [as_prompt(prompt) for prompt in prompts]
    is_chat = any(not isinstance(prompt.value, str) for prompt in given)
    names = {name: None for prompt in given for name in prompt.columns}
    columns: dict[str, Any] = {name: [prompt.columns.get(name) for prompt in given] for name in names}
    if completion_ids is not None:
        columns["completion_ids"] = [list(ids) for ids in completion_ids]
    return score_completions(
        reward,
        [prompt.messages if is_chat else prompt.value for prompt in given],
        [[{"role": "assistant", "content": text}] if is_chat else text for text in completions],
        columns=columns,
    )


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of one update, as they were read and as ids, and the seed of all that is drawn at random in it."""

    prompts: list[Prompt]
    ids: list[list[int]]
    seed: int


class PromptBatches:
    """Endless batches of `batch_size` prompts; in an epoch each comes once."""

    def __init__(
        self, prompts: Sequence[Prompt | str], tokenizer: Tokenizer, batch_size: int, seed: int
    ) -> None:
        self.prompts, self.tokenizer = [as_prompt(prompt) for prompt in prompts], tokenizer
        self.batch_size, self.seed = batch_size, seed
        self.order = DataOrder(len(prompts), seed)

    def next_batch(self) -> PromptBatch:
        """The next prompts; the seed depends on the place in the data only, so a resumed run draws the same."""
        seed = self.seed * 1_000_003 + self.order.epoch * self.order.size + self.order.position
        prompts = [self.prompts[i] for i in self.order.take(self.batch_size)]
        return PromptBatch(prompts, encode_prompts(self.tokenizer, prompts), seed)
