"""Preference records as training examples: `apply_chat_template` of transformers, prompt and replies.

trl's `DPOTrainer` and `RewardTrainer` make the same call. The order of the batches is the trainer's.

    pair = encode_pair(tokenizer, format_preference({"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}), "record 0")
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float
from shared_data.preference_pairs import Pair

from shared_data.corpus.formatting import format_preference
from shared_data.errors import UserError
from shared_data.settings import PreferenceSettings, Settings
from v1_quick.data_pipeline.download.records import open_records
from v1_quick.data_pipeline.tokenizer.chat_template import CHAT_TEMPLATE
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer
from v1_quick.finetune.chat_data import _template, check_turns

HELD_OUT_PART = 10  # of a user's records, one in so many is held out


def encode_pair(
    tokenizer: Tokenizer, record: Mapping[str, Sequence[Mapping[str, Any]]], where: str = "the record"
) -> Pair:
    """(prompt ids, chosen ids, rejected ids) of a record whose three parts are messages; a reply ends with its `<|im_end|>`."""
    for part in ("prompt", "chosen", "rejected"):
        contents = [message["content"] for message in record[part]]
        if not any(content.strip() for content in contents):
            raise UserError(f"{where}: {part!r} is empty; complete or remove the record")
        for token in tokenizer.special_tokens:
            if any(token in content for content in contents):
                raise UserError(
                    f"{where} contains {token}, which the template writes itself; remove it from the text"
                )
    library = _template(tokenizer)

    def encode(messages: list[Any], **options: Any) -> list[int]:
        encoded = library.apply_chat_template(
            messages, chat_template=CHAT_TEMPLATE, return_dict=True, **options
        )
        return encoded["input_ids"]

    prompt = encode(list(record["prompt"]), add_generation_prompt=True)
    replies = []
    end = library.convert_tokens_to_ids("<|im_end|>")
    for part in ("chosen", "rejected"):
        check_turns([*record["prompt"], *record[part]], where)
        reply = encode([*record["prompt"], *record[part]])[len(prompt) :]
        replies.append(reply[: len(reply) - reply[::-1].index(end)])  # without the line break after it
    return prompt, replies[0], replies[1]


@dataclass(frozen=True)
class Preferences:
    """Pairs as ids, the words that name each in an error, by how much each chosen reply is better, and what is wrong with the other."""

    pairs: list[Pair]
    names: list[str]
    margins: Float[np.ndarray, " P"]  # 0 where the record has no `margin`
    reasons: list[str]  # empty where the record has no `reason`


def open_preferences(settings: Settings, stage: str, tokenizer: Tokenizer) -> tuple[Preferences, Preferences]:
    """Pairs of a stage to learn from, and others that are held out: of the story world's test split, or of a user's records.

    Raises `UserError` naming the record that is wrong.
    """
    section: PreferenceSettings = getattr(settings, stage)
    if section.source == "story_world":
        told = _told(section.seed, "train", **section.lessons)
        exam = _told(0, "test", question_fraction=section.question_fraction)
        given = _encode(tokenizer, islice(told, section.pairs))
        return given, _encode(tokenizer, islice(exam, section.test_pairs))
    data = settings.data.model_copy(
        update={"source": section.source, "hub_config": None, "hub_split": "train"}
    )
    records = [
        (where, format_preference(record, where) | record_extras(record, where))
        for where, record in islice(open_records(data), section.pairs)
    ]
    held_out = records[::HELD_OUT_PART][: section.test_pairs]
    kept = [record for i, record in enumerate(records) if i % HELD_OUT_PART] or records
    return _encode(tokenizer, kept), _encode(tokenizer, held_out)


def record_extras(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The optional fields of a preference record: a number `margin` (as trl reads it) and a text `reason`."""
    margin = record.get("margin")
    if margin is not None and not (isinstance(margin, int | float) and math.isfinite(margin)):
        raise UserError(
            f"{where}: the margin is {margin!r:.40}, not a finite number; correct or leave it out"
        )
    return {"margin": float(margin or 0.0), "reason": str(record.get("reason") or "")}


def _told(seed: int, split: str, **lessons: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The story world's pairs, each with the words that name it in an error."""
    from shared_data.story_world.tasks import preference_pairs

    pairs = preference_pairs(seed, split, **lessons)
    for number, pair in enumerate(pairs):
        where = f"pair {number:,} of the story world"
        record = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        yield where, format_preference(record, where) | {"margin": 0.0, "reason": pair.reason}


def _encode(tokenizer: Tokenizer, records: Iterable[tuple[str, dict[str, Any]]]) -> Preferences:
    """All records as ids."""
    given = list(records)
    pairs = [encode_pair(tokenizer, record, where) for where, record in given]
    return Preferences(
        pairs,
        [where for where, _ in given],
        np.array([record["margin"] for _, record in given]),
        [record["reason"] for _, record in given],
    )
