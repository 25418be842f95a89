"""Preference records as training examples: ids of prompt and replies, and batches of both in an order that can be resumed.

The prompt is written by the chat template up to `<|im_start|>assistant`, as generation will see it; a reply ends with its
`<|im_end|>`, as generation will leave it. trl lets the template's line break after `<|im_end|>` belong to the reply, so that its
reward model is trained at a token that no rollout ever ends with; here it does not. Bad records are refused by name.

Level 1: the chat template of transformers. Level 3: the same as here. Theory: algorithms/dpo.md.

    pair = encode_pair(tokenizer, format_preference({"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}), "record 0")
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from shared_data.corpus.formatting import format_preference
from shared_data.corpus.records import open_records
from shared_data.errors import UserError
from shared_data.inference.prompts import encode_chat
from shared_data.preference_pairs import Pair, check_pairs
from shared_data.settings import PreferenceSettings, Settings
from shared_data.tokenizer.chat_template import render_chat
from shared_data.training.chat_data import check_turns
from v2_handwritten.align.algorithms.dpo import PreferenceBatch, preference_batch
from v2_handwritten.align.own_answers import Answered
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer

HELD_OUT_PART = 10  # of a user's records, one in so many is held out


def encode_pair(
    tokenizer: Tokenizer, record: Mapping[str, Sequence[Mapping[str, Any]]], where: str = "the record"
) -> Pair:
    """(prompt ids, chosen ids, rejected ids) of a record whose three parts are messages, as `format_preference` makes them.

    Raises `UserError` for an empty part, turns out of order, or text with one of the template's own tokens.
    """
    for part in ("prompt", "chosen", "rejected"):
        contents = [message["content"] for message in record[part]]
        if not any(content.strip() for content in contents):
            raise UserError(f"{where}: {part!r} is empty; complete or remove the record")
        for token in tokenizer.special_tokens:
            if any(token in content for content in contents):
                raise UserError(
                    f"{where} contains {token}, which the template writes itself; remove it from the text"
                )
    prompt = render_chat(record["prompt"], add_generation_prompt=True)
    ids = [tokenizer.encode(prompt, add_special_tokens=False)]
    for part in ("chosen", "rejected"):
        check_turns([*record["prompt"], *record[part]], where)
        reply = render_chat(record[part]).removeprefix("<|im_start|>assistant\n").removesuffix("\n")
        ids.append(tokenizer.encode(reply, add_special_tokens=False))
    return ids[0], ids[1], ids[2]


@dataclass(frozen=True)
class Preferences:
    """Pairs as ids, the words that name each in an error, by how much each chosen reply is better, and what is wrong with the other."""

    pairs: list[Pair]
    names: list[str]
    margins: Float[np.ndarray, " P"]  # 0 where the record has no `margin`
    reasons: list[str]  # empty where the record has no `reason`

    def loader(
        self, section: PreferenceSettings, pad_id: int, max_length: int, shuffle: bool
    ) -> "PreferenceLoader":
        """Batches of these pairs. Raises `UserError` for a pair that cannot be learned from."""
        return PreferenceLoader(
            self.pairs, section.batch_size, pad_id, max_length, section.seed, shuffle, self.names
        )


def open_preferences(
    settings: Settings, stage: str, tokenizer: Tokenizer, answered: Answered | None = None
) -> tuple[Preferences, Preferences]:
    """Pairs of a stage to learn from, and others that are held out: of the story world's test split, or of a user's records.

    answered: changes all prompts, as a reward model needs it that is shown answers (own_answers.py).

    Raises `UserError` naming the record that is wrong.
    """
    section: PreferenceSettings = getattr(settings, stage)
    if section.source == "story_world":
        told = _told(section.seed, "train", **section.lessons)
        exam = _told(0, "test", question_fraction=section.question_fraction)
        given = _encode(tokenizer, islice(told, section.pairs), answered)
        return given, _encode(tokenizer, islice(exam, section.test_pairs), answered)
    data = settings.data.model_copy(
        update={"source": section.source, "hub_config": None, "hub_split": "train"}
    )
    records = [
        (where, format_preference(record, where) | record_extras(record, where))
        for where, record in islice(open_records(data), section.pairs)
    ]
    held_out = records[::HELD_OUT_PART][: section.test_pairs]
    kept = [record for i, record in enumerate(records) if i % HELD_OUT_PART] or records
    return _encode(tokenizer, kept, answered), _encode(tokenizer, held_out, answered)


def record_extras(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The optional fields of a preference record: a number `margin` (as trl reads it) and a text `reason`."""
    margin = record.get("margin")
    if margin is not None and not (isinstance(margin, int | float) and math.isfinite(margin)):
        raise UserError(
            f"{where}: the margin is {margin!r:.40}, not a finite number; correct or leave it out"
        )
    return {"margin": float(margin or 0.0), "reason": str(record.get("reason") or "")}


class PreferenceLoader:
    """Endless batches of B pairs; in an epoch each pair comes once, in an order drawn from (seed, epoch).

    Without `shuffle`, the first epoch keeps the order of the pairs, as a curriculum needs it.

    `indices` of the last batch says which pairs it holds, so that numbers computed once for each pair, such as the
    log-probabilities of a reference model, can be looked up.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        batch_size: int,
        pad_id: int,
        max_length: int,
        seed: int,
        shuffle: bool = True,
        names: Sequence[str] | None = None,
    ) -> None:
        check_pairs(pairs, max_length, names)
        self.pairs = list(pairs)
        self.batch_size = batch_size
        self.pad_id = pad_id
        self.max_length = max_length
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.position = 0  # pairs of this epoch that were given out
        self.indices = np.empty(0, np.int64)
        self._order = self._order_of_epoch()

    def next_batch(self) -> PreferenceBatch:
        """The next B pairs; a batch that reaches the end of an epoch is filled up from the next one."""
        chosen: list[int] = []
        while len(chosen) < self.batch_size:
            if self.position == len(self.pairs):
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._order_of_epoch()
            end = min(len(self.pairs), self.position + self.batch_size - len(chosen))
            chosen += self._order[self.position : end].tolist()
            self.position = end
        return self._batch(chosen)

    def one_pass(self, max_batches: int | None = None) -> Iterator[PreferenceBatch]:
        """Every pair once and in order, the last batch smaller; training's position stays."""
        starts = range(0, len(self.pairs), self.batch_size)
        for start in starts[:max_batches]:
            yield self._batch(list(range(start, min(len(self.pairs), start + self.batch_size))))

    def state_dict(self) -> dict[str, Any]:
        """All that decides which batches follow; plain numbers, for JSON."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "pairs": len(self.pairs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken. Raises `UserError` for the state of other pairs or another seed."""
        own = self.state_dict()
        for key in ("seed", "shuffle", "pairs"):
            if state[key] != own[key]:
                raise UserError(
                    f"the checkpoint's data order has {key} {state[key]}, this run has {own[key]}; "
                    "start over with the stage's setting resume=false"
                )
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._order_of_epoch()

    def _order_of_epoch(self) -> Int64[np.ndarray, " P"]:
        """Which pair comes when; a function of (seed, epoch) alone."""
        order = np.arange(len(self.pairs))
        if self.shuffle or self.epoch > 0:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        return order

    def _batch(self, indices: list[int]) -> PreferenceBatch:
        self.indices = np.array(indices, dtype=np.int64)
        return preference_batch([self.pairs[i] for i in indices], self.pad_id, self.max_length)


def _told(seed: int, split: str, **lessons: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The story world's pairs, each with the words that name it in an error."""
    from shared_data.story_world.tasks import preference_pairs

    pairs = preference_pairs(seed, split, **lessons)
    for number, pair in enumerate(pairs):
        where = f"pair {number:,} of the story world"
        record = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        yield where, format_preference(record, where) | {"margin": 0.0, "reason": pair.reason}


def _encode(
    tokenizer: Tokenizer, records: Iterable[tuple[str, dict[str, Any]]], answered: Answered | None
) -> Preferences:
    """All records as ids."""
    given = list(records)
    pairs = [encode_pair(tokenizer, record, where) for where, record in given]
    if answered is not None:  # after every record has been found to be a pair
        prompts = [record["prompt"] for _, record in given]
        for number, (prompt, shown) in enumerate(zip(prompts, answered(prompts), strict=True)):
            if shown != prompt:
                pairs[number] = (encode_chat(tokenizer, shown), *pairs[number][1:])
    return Preferences(
        pairs,
        [where for where, _ in given],
        np.array([record["margin"] for _, record in given]),
        [record["reason"] for _, record in given],
    )
