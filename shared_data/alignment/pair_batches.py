"""Preference pairs as batches of ids, in an order that can be resumed.

The prompt is written by the chat template up to `<|im_start|>assistant`, as generation will see it; a completion ends with its
`<|im_end|>`, as generation will leave it. trl lets the template's line break after `<|im_end|>` belong to the completion, so that its
reward model is trained at a token that no sampled completion ever ends with; here it does not.

    batches = PairBatches(records, tokenizer, settings.dpo, max_length=1024); batch = batches.next_batch()
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from shared_data.alignment.pairs import PairRecord, check_pair_turns, check_texts, open_pairs
from shared_data.alignment.token_policy import pad_completions
from shared_data.corpus.bad_records import BadRecords
from shared_data.corpus.used_fields import template_source
from shared_data.errors import UserError
from shared_data.settings import PreferenceSettings, Settings
from shared_data.tokenizer.tokenizer import Tokenizer
from shared_data.training.data_order import DataOrder

Pair = tuple[list[int], list[int], list[int]]  # ids of the prompt, the chosen and the rejected completion


@dataclass(frozen=True)
class PairBatch:
    """B pairs in N = 2B rows, first the chosen completions, then the rejected ones, each behind its prompt; padded on the right."""

    input_ids: Int64[np.ndarray, "N T"]
    completion_mask: Int64[np.ndarray, "N T"]  # 1 on the tokens of the completion
    attention_mask: Int64[np.ndarray, "N T"]  # 1 on prompt and completion
    indices: Int64[np.ndarray, " B"]  # which pairs these are, for numbers that were computed once for each
    margins: Float[np.ndarray, " B"]  # by how much each chosen completion is better; 0 where not known

    @property
    def num_items(self) -> int:
        """Pairs: what the mean loss is a mean over."""
        return len(self.indices)

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return int(self.attention_mask.sum())

    @property
    def completion_lengths(self) -> Int64[np.ndarray, " N"]:
        """Tokens of each completion."""
        return self.completion_mask.sum(-1)


class PairBatches:
    """Endless batches of pairs; in an epoch each pair comes once."""

    def __init__(
        self,
        records: Sequence[PairRecord],
        tokenizer: Tokenizer,
        section: PreferenceSettings,
        positions: int,
        shuffle: bool = True,
    ) -> None:
        """positions: of the model. Raises `UserError`, naming the record, for a pair that cannot be learned from."""
        self.max_length = min(section.max_length, positions)
        self.pairs = [encode_pair(tokenizer, record) for record in records]
        check_pairs(self.pairs, self.max_length, [record["where"] for record in records])
        self.margins = np.array([record["margin"] for record in records])
        self.reasons = [record["reason"] for record in records]
        self.batch_size = section.per_device_train_batch_size
        self.pad_id = tokenizer.special_tokens.get("<|pad|>", tokenizer.end_of_text_id)
        self.order = DataOrder(len(self.pairs), section.seed, shuffle)

    def next_batch(self) -> PairBatch:
        """The next B pairs."""
        return self._batch(self.order.take(self.batch_size))

    def one_pass(self) -> Iterator[PairBatch]:
        """Every pair once and in order, the last batch smaller."""
        for start in range(0, len(self.pairs), self.batch_size):
            yield self._batch(range(start, min(len(self.pairs), start + self.batch_size)))

    def _batch(self, indices: Sequence[int]) -> PairBatch:
        rows = np.array(indices, np.int64)
        input_ids, completion_mask, attention_mask = pad_pairs(
            [self.pairs[i] for i in rows], self.pad_id, self.max_length
        )
        return PairBatch(input_ids, completion_mask, attention_mask, rows, self.margins[rows])


def open_pair_batches(
    settings: Settings, stage: str, tokenizer: Tokenizer, positions: int, bad: BadRecords | None = None
) -> tuple[PairBatches, PairBatches]:
    """Batches of the pairs of a stage to train on, and of held-out ones, in order. Raises `UserError` naming the record that is wrong.

    bad: counts what was read, skipped and cut off.
    """
    section: PreferenceSettings = getattr(settings, stage)
    length = min(section.max_length, positions)

    def check(record: PairRecord) -> None:
        check_pairs([encode_pair(tokenizer, record)], length, [record["where"]])

    # Where a bad record stops the job, encoding the batches finds it.
    bad = bad or BadRecords(section.on_bad_record)
    check_each = check if bad.policy == "skip" else None
    records = open_pairs(settings, stage, check_each, bad, template_source(tokenizer))
    train, held_out = (
        PairBatches(part, tokenizer, section, positions, shuffle)
        for part, shuffle in zip(records, (True, False), strict=True)
    )
    bad.cut = sum(is_cut(pair, length) for batches in (train, held_out) for pair in batches.pairs)
    return train, held_out


def is_cut(pair: Pair, max_length: int) -> bool:
    """Whether the end of a completion is left out."""
    prompt, chosen, rejected = pair
    return len(prompt) + max(len(chosen), len(rejected)) > max_length


def encode_pair(tokenizer: Tokenizer, record: PairRecord) -> Pair:
    """The ids of a record's three parts. Raises `UserError` for an empty part, turns out of order, or a template's token in a text."""
    check_texts(record, tokenizer.special_tokens)
    check_pair_turns(record)
    tools = record.get("tools")
    template = tokenizer.get_chat_template(with_tools=tools is not None)
    ids = [tokenizer.encode(template.render(record["prompt"], add_generation_prompt=True, tools=tools))]
    for part in ("chosen", "rejected"):
        messages = [*record["prompt"], *record[part]]
        text, spans = template.render_with_spans(messages, tools)
        first = -sum(message["role"] == "assistant" for message in record[part])
        # Not with the line break after it: a sampled completion ends with the token that ends the turn.
        ids.append(tokenizer.encode(text[spans[first][0] : spans[-1][1]].removesuffix("\n")))
    return ids[0], ids[1], ids[2]


def pad_pairs(pairs: Sequence[Pair], pad_id: int, max_length: int) -> tuple[Int64[np.ndarray, "N T"], ...]:
    """Input ids, completion mask and attention mask of 2B rows; what exceeds `max_length` is cut off at the end."""
    rows = [(prompt, chosen[: max_length - len(prompt)]) for prompt, chosen, _ in pairs]
    rows += [(prompt, rejected[: max_length - len(prompt)]) for prompt, _, rejected in pairs]
    input_ids, completion_mask, attention_mask = pad_completions(rows)
    return np.where(attention_mask, input_ids, pad_id), completion_mask, attention_mask


def evaluate_pairs(
    batches: PairBatches, loss_of: Callable[[PairBatch], tuple[Any, dict[str, float]]]
) -> dict[str, float]:
    """The mean `loss` and metrics over all pairs, each once; every pair counts the same."""
    totals: Counter[str] = Counter()
    for batch in batches.one_pass():
        loss, metrics = loss_of(batch)
        totals.update(
            {name: value * batch.num_items for name, value in {"loss": loss.item(), **metrics}.items()}
        )
    return {name: total / len(batches.pairs) for name, total in totals.items()}


def check_pairs(pairs: Sequence[Pair], max_length: int, names: Sequence[str]) -> None:
    """Raise `UserError` for the first pair that cannot be learned from, by its name.

    An empty completion, two equal ones, or one that does not fit the context would not stop a training: it would quietly teach
    nothing, or something else. Prompt and completion together may be longer than `max_length`: the end is then cut off, as trl
    does. Each alone may not, and after the cut the two completions must still differ.
    """
    if not pairs:
        raise UserError("there is no preference pair; bring at least one")
    for name, (prompt, chosen, rejected) in zip(names, pairs, strict=True):
        parts = {"prompt": prompt, "chosen completion": chosen, "rejected completion": rejected}
        for part, ids in parts.items():
            if not ids:
                raise UserError(f"{name}: the {part} is empty; complete or remove the record")
            if len(ids) >= max_length + (part != "prompt"):
                raise UserError(
                    f"{name}: the {part} has {len(ids)} tokens and does not fit the context of {max_length}; "
                    "shorten or remove the record, or allow a longer context"
                )
        if chosen == rejected:
            raise UserError(f"{name}: chosen and rejected completion are identical; remove the record")
        room = max_length - len(prompt)
        if chosen[:room] == rejected[:room]:
            raise UserError(
                f"{name}: chosen and rejected completion differ only after the {max_length} tokens of the context; "
                "shorten the prompt, remove the record, or allow a longer context"
            )
