"""Conversations as training examples: ids, the mask of the assistant's tokens, and packed batches of both.

A conversation becomes one text (`chat_template.py`) and then tokens. The loss counts only what the assistant says, the token that
ends its turn included: a model trained on the prompts too would learn to ask questions. A packed row holds whole
conversations one after the other; document masks keep them apart, and none is cut in two.

Level 1: `apply_chat_template(..., return_assistant_tokens_mask=True)` of transformers, as TRL's `SFTTrainer` calls it. Level 3:
the same as here. Theory: chat_data.md.

    example = encode_conversation(tokenizer, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}], 256)
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from shared_data.errors import UserError
from shared_data.tokenizer.chat_template import Span
from shared_data.tokenizer.tokenizer import Tokenizer
from shared_data.training.data_loader import IGNORED_LABEL, Batch
from shared_data.training.data_order import DataOrder

PACKED_TOGETHER = 1000  # conversations among which those of a row are chosen; as many as TRL's


@dataclass(frozen=True)
class Example:
    """A conversation in tokens."""

    ids: Int64[np.ndarray, " N"]
    trained: Bool[np.ndarray, " N"]  # the tokens that the assistant says
    is_cut: bool = False  # whether its end is left out


def check_turns(messages: Sequence[Mapping[str, Any]], where: str = "the conversation") -> None:
    """Raise `UserError` where the assistant says nothing, and so nothing can be learned. Turns may come in any order, as in TRL."""
    if not any(message.get("role") == "assistant" for message in messages):
        raise UserError(f"{where} has no assistant turn, so there is nothing to learn from it; add the reply")


def check_conversation(
    messages: Sequence[Mapping[str, Any]], special_tokens: Iterable[str], where: str = "the conversation"
) -> None:
    """Raise `UserError` where the assistant says nothing, or for text with one of the template's own tokens."""
    check_turns(messages, where)
    check_content(texts_in(messages), special_tokens, where)


def texts_in(value: Any) -> list[str]:
    """All texts of messages or of schemas, however deep."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [text for part in parts for text in texts_in(part)]


def check_content(contents: Sequence[str], special_tokens: Iterable[str], where: str) -> None:
    """Raise `UserError` for text with one of the template's own tokens, with which it could end a turn by itself."""
    for token in special_tokens:
        if any(token in content for content in contents):
            raise UserError(
                f"{where} contains {token}, which the template writes itself; remove it from the text"
            )


def encode_conversation(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    max_length: int,
    where: str = "the conversation",
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> Example:
    """The tokens of a conversation, at most `max_length`: what is longer is cut off at the end, as TRL does.

    tools: JSON schemas of the functions that the assistant may call, for a template that writes them. A reply of weight 0 is read and not learned from (OpenAI's field). Raises `UserError` where the assistant says nothing, for text with one
    of the template's own tokens, or a conversation whose first reply begins only after `max_length`.
    """
    check_conversation(messages, tokenizer.special_tokens, where)
    check_content(texts_in(tools), tokenizer.special_tokens, where)
    template = tokenizer.get_chat_template(with_tools=tools is not None)
    text, spans = template.render_with_spans(messages, tools)
    spans = _learned(spans, messages, where)
    tokens = tokenizer.encode(text)
    ids = np.array(tokens, dtype=np.int64)
    lengths = tokenizer.byte_lengths_in(text, tokens)
    ends = lengths.cumsum()
    trained = np.zeros(len(ids), dtype=bool)
    for begin, end in ((len(text[:place].encode()) for place in span) for span in spans):
        trained |= (ends > begin) & (ends - lengths < end)
    if not trained[:max_length].any():
        raise UserError(no_room(where, int(trained.argmax()), max_length))
    return Example(ids[:max_length], trained[:max_length], len(ids) > max_length)


def no_room(where: str, tokens: int, max_length: int) -> str:
    """The words for a conversation whose first reply does not fit."""
    return (
        f"{where} has {tokens} tokens before its first reply, more than the {max_length} that a sequence "
        "holds; shorten it or raise sft.max_length"
    )


def _learned(spans: Sequence[Span], messages: Sequence[Mapping[str, Any]], where: str) -> list[Span]:
    """The spans of the replies whose weight is not 0."""
    weights = [message.get("weight", 1) for message in messages if message["role"] == "assistant"]
    if not all(weights):
        if len(spans) != len(weights):
            raise UserError(
                f"{where} has a reply of weight 0, and the chat template does not mark each reply; remove the weights"
            )
        spans = [span for span, weight in zip(spans, weights, strict=True) if weight]
        if not spans:
            raise UserError(f"{where} has replies of weight 0 only; remove the record, or a weight")
    return list(spans)


class PackedConversations:
    """Endless batches of packed conversations; in an epoch each comes once. What a row has left is padding that no loss counts."""

    def __init__(
        self,
        examples: Iterable[Example],
        batch_size: int,
        sequence_length: int,
        pad_id: int,
        seed: int,
        shuffle: bool = True,
    ) -> None:
        self.examples = list(examples)
        if not self.examples:
            raise UserError("there is no conversation to train on; check sft.source")
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.pad_id = pad_id
        self.order = DataOrder(len(self.examples), seed, shuffle, self._rows_in)

    def next_batch(self) -> Batch:
        """The next B rows."""
        return self._pack(self.order.take(self.batch_size))

    def one_pass(self, max_batches: int | None = None) -> Iterator[Batch]:
        """Every conversation once, the last batch smaller; training's position stays."""
        rows = self._rows_in(np.arange(len(self.examples)))
        for start in range(0, len(rows), self.batch_size)[:max_batches]:
            yield self._pack(rows[start : start + self.batch_size])

    def _rows_in(self, order: Int64[np.ndarray, " S"]) -> list[list[int]]:
        """Rows of conversations in this order, of so many at a time."""
        lengths = np.array([len(self.examples[i].ids) - 1 for i in order])  # the last token is only a label
        return [
            [int(order[start + place]) for place in row]
            for start in range(0, len(order), PACKED_TOGETHER)
            for row in best_fit_rows(lengths[start : start + PACKED_TOGETHER], self.sequence_length)
        ]

    def _pack(self, rows: list[list[int]]) -> Batch:
        """Inputs and labels side by side; padding is a document of its own."""
        B, T = len(rows), self.sequence_length
        input_ids = np.full((B, T), self.pad_id, dtype=np.int64)
        labels = np.full((B, T), IGNORED_LABEL, dtype=np.int64)
        position_ids = np.zeros((B, T), dtype=np.int64)
        document_ids = np.zeros((B, T), dtype=np.int64)
        for b, row in enumerate(rows):
            begin = 0
            for number, example in enumerate(self.examples[i] for i in row):
                end = begin + len(example.ids) - 1
                input_ids[b, begin:end] = example.ids[:-1]
                labels[b, begin:end] = np.where(example.trained[1:], example.ids[1:], IGNORED_LABEL)
                position_ids[b, begin:end] = np.arange(end - begin)
                document_ids[b, begin:end] = number
                begin = end
            position_ids[b, begin:] = np.arange(T - begin)
            document_ids[b, begin:] = len(row)
        return Batch(input_ids, labels, position_ids, document_ids)


def best_fit_rows(lengths: Int64[np.ndarray, " N"], room: int) -> list[list[int]]:
    """Which of N conversations share a row that holds `room` tokens: best fit decreasing (Johnson et al. 1974; Ding et al. 2024).

    The longest first, each into the fullest row that still has room for it. A row lists its conversations in their order, and
    rows follow each other as their first ones do.
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, row), from full to empty
    for place in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[place])
        assert length <= room, f"a conversation is longer than the row of {room} tokens"
        fitting = bisect_left(rooms, (length, 0))
        if fitting == len(rooms):
            rows.append([])
            left, row = room, len(rows) - 1
        else:
            left, row = rooms.pop(fitting)
        rows[row].append(place)
        insort(rooms, (left - length, row))
    return sorted(sorted(row) for row in rows)
