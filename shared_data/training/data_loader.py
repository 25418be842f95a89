"""Packed batches over a memory-mapped token file, in an order that can be resumed exactly.

The documents of a corpus lie end to end in one file of token ids, each closed by `<|endoftext|>`. Training cuts that
stream into sequences of T tokens, so that no position is wasted on padding (Brown et al. 2020, appendix B). One
`<|endoftext|>` is put before the stream: then every token of the file, first words and closing tokens included, is the
label of exactly one position, and each document begins AT the end-of-text before it (data_loader.md has the picture).
`document_ids` and `position_ids` say where the documents are, for the models' document masks.

Levels 2 and 3 train on these batches; level 1 hands the same rows to the `Trainer`.

    PackedDocuments("runs/v2/tiny/tokenizer/train.bin", 16, 256, end_of_text_id=0, seed=0).next_batch()
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from shared_data.errors import UserError
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.state_schema import TokenFacts, read_state
from shared_data.tokenizer.tokenizer import Tokenizer
from shared_data.training.data_order import DataOrder

IGNORED_LABEL = -100  # a position that is no prediction; the value torch and transformers use


@dataclass(frozen=True)
class Batch:
    """B packed sequences: `labels[b, t]` is the token that follows `input_ids[b, t]`."""

    input_ids: Int64[np.ndarray, "B T"]
    labels: Int64[np.ndarray, "B T"]  # IGNORED_LABEL after the end of the stream
    position_ids: Int64[np.ndarray, "B T"]  # 0 where a document begins
    document_ids: Int64[np.ndarray, "B T"]  # equal inside a document

    @property
    def num_items(self) -> int:
        """How many positions of the batch are predictions: what a mean loss is a mean over."""
        return int(np.count_nonzero(self.labels != IGNORED_LABEL))

    num_tokens = num_items  # what training counts


def check_token_batch(batch: Any, kind: type[Any], vocab_size: int) -> None:
    """Raise `UserError` for a batch of `train_step` that is no array of this kind with ids of the vocabulary [B, T + 1]."""
    name = f"{kind.__module__}.{kind.__name__}"
    if not isinstance(batch, kind):
        raise UserError(
            f"the batch is a {type(batch).__name__}, this level trains on a {name}; make one of its token ids"
        )
    shape, dtype = tuple(batch.shape), str(batch.dtype).removeprefix("torch.")
    if len(shape) != 2 or shape[0] < 1 or shape[1] < 2:
        raise UserError(
            f"the batch has the shape {list(shape)}, not [B, T + 1]; give rows of at least two tokens, of which each is predicted"
        )
    if dtype not in ("int32", "int64"):
        raise UserError(f"the batch holds {dtype}, not token ids; give it integers of the type int64")
    low, high = int(batch.min()), int(batch.max())
    if low < 0 or high >= vocab_size:
        raise UserError(
            f"the batch has the id {low if low < 0 else high}, and the model's ids are 0 to {vocab_size - 1}; use the tokenizer "
            "that belongs to the model"
        )


class PackedDocuments:
    """Endless batches; within an epoch every token of the file is the label of exactly one position."""

    def __init__(
        self,
        path: str | Path,
        batch_size: int,
        sequence_length: int,
        end_of_text_id: int,
        seed: int,
        shuffle: bool = True,
    ) -> None:
        self.tokens = open_tokens(path)
        if len(self.tokens) < sequence_length:
            raise UserError(
                f"{path} holds {len(self.tokens)} tokens, less than one sequence of {sequence_length}; "
                "bring more text or lower pretrain.sequence_length"
            )
        self.batch_size, self.sequence_length = batch_size, sequence_length
        self.end_of_text_id = end_of_text_id
        self.num_sequences = -(-len(self.tokens) // sequence_length)  # rounded up: the tail is a sequence too
        self.order = DataOrder(self.num_sequences, seed, shuffle)

    def next_batch(self) -> Batch:
        """The next B sequences."""
        return self.read(self.order.take(self.batch_size))

    def one_pass(self, max_batches: int | None = None) -> Iterator[Batch]:
        """Every sequence once, in the order of the file, the last batch smaller; training's position stays."""
        starts = range(0, self.num_sequences, self.batch_size)
        for start in starts[:max_batches]:
            yield self.read(range(start, min(start + self.batch_size, self.num_sequences)))

    def read(self, rows: Sequence[int]) -> Batch:
        """These sequences; sequence i predicts tokens[i T : (i + 1) T] from the same tokens one place earlier."""
        B, T, end = len(rows), self.sequence_length, self.end_of_text_id
        stream = np.full((B, T + 1), end, dtype=np.int64)
        labels = np.full((B, T), IGNORED_LABEL, dtype=np.int64)
        for b, row in enumerate(map(int, rows)):
            targets = self.tokens[row * T : (row + 1) * T]  # shorter than T only at the end of the file
            stream[b, 0] = self.tokens[row * T - 1] if row > 0 else end
            stream[b, 1 : len(targets) + 1] = targets
            labels[b, : len(targets)] = targets
        input_ids = stream[:, :T]
        return Batch(input_ids, labels, *document_layout(input_ids, end))


def open_documents(settings: Settings, run: RunFolder, split: str, tokenizer: Tokenizer) -> PackedDocuments:
    """The packed documents of a split of a run; the training split is shuffled. Raises `UserError` for another tokenizer's file."""
    path, section = run.tokens(split), settings.pretrain
    facts = read_token_facts(path)
    if facts["vocab_size"] != tokenizer.vocab_size:
        raise UserError(
            f"{path} was made with a tokenizer of {facts['vocab_size']} tokens, {run.tokenizer} has "
            f"{tokenizer.vocab_size}; run the stage `tokenizer` again with --force"
        )
    return PackedDocuments(
        path,
        section.per_device_train_batch_size,
        section.sequence_length,
        tokenizer.end_of_text_id,
        section.seed,
        shuffle=split == "train",
    )


def document_layout(
    input_ids: Int64[np.ndarray, "B T"], end_of_text_id: int
) -> tuple[Int64[np.ndarray, "B T"], Int64[np.ndarray, "B T"]]:
    """Position within the document and number of the document, for every token.

    A document begins at an `<|endoftext|>`, and at the start of the row whatever stands there.
    """
    begins = input_ids == end_of_text_id
    begins[:, 0] = True
    column = np.arange(input_ids.shape[1])
    last_begin = np.maximum.accumulate(np.where(begins, column, 0), axis=1)
    return column - last_begin, np.cumsum(begins, axis=1) - 1


def open_tokens(path: str | Path) -> np.ndarray:
    """The token file as a read-only array that the operating system pages in; its .json gives the type and length."""
    path = Path(path)
    facts = read_token_facts(path)
    if not path.is_file():
        raise UserError(f"no token file {path}; run the stage `tokenizer` first")
    dtype = np.dtype(facts["dtype"])
    if path.stat().st_size != facts["tokens"] * dtype.itemsize:
        raise UserError(
            f"{path} has {path.stat().st_size} bytes, but {path.with_suffix('.json').name} lists {facts['tokens']} "
            f"{dtype} tokens; one of them is damaged: run the stage `tokenizer` again with --force"
        )
    if facts["tokens"] == 0:
        return np.empty(0, dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype=dtype, mode="r")


def read_token_facts(path: str | Path) -> dict[str, Any]:
    """What the stage `tokenizer` wrote beside a token file: dtype, tokens, documents, bytes, log2_probability."""
    facts_path = Path(path).with_suffix(".json")
    if not facts_path.is_file():
        raise UserError(f"no {facts_path}; run the stage `tokenizer` first")
    facts: dict[str, Any] = read_state(facts_path, TokenFacts, "tokenizer")
    return facts
