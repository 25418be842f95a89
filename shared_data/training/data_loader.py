"""Packed batches over a memory-mapped token file, in an order that can be resumed exactly.

The documents of a corpus lie end to end in one file of token ids, each closed by `<|endoftext|>`. Training cuts that
stream into sequences of T tokens, so that no position is wasted on padding (Brown et al. 2020, appendix B). One
`<|endoftext|>` is put before the stream: then every token of the file, first words and closing tokens included, is the
label of exactly one position, and each document begins AT the end-of-text before it (data_loader.md has the picture).
`document_ids` and `position_ids` say where the documents are, for the models' document masks.

Every level returns the same NumPy arrays. Level 1 hands the sequences to torch's `DataLoader` and to the `Trainer`;
levels 2 and 3 read rows of the file themselves.

    PackedDataLoader("runs/v2/tiny/tokenizer/train.bin", 16, 256, end_of_text_id=0, seed=0).next_batch()
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, Integer

from shared_data.errors import UserError
from shared_data.files import read_json

IGNORED_LABEL = -100  # a position that is no prediction; the value torch and transformers use


@dataclass(frozen=True)
class Batch:
    """B packed sequences: `labels[b, t]` is the token that follows `input_ids[b, t]`."""

    input_ids: Int64[np.ndarray, "B T"]
    labels: Int64[np.ndarray, "B T"]  # IGNORED_LABEL after the end of the stream
    position_ids: Int64[np.ndarray, "B T"]  # 0 where a document begins
    document_ids: Int64[np.ndarray, "B T"]  # equal inside a document

    @property
    def num_targets(self) -> int:
        """How many positions of the batch are predictions: what a mean loss is a mean over."""
        return int(np.count_nonzero(self.labels != IGNORED_LABEL))


@runtime_checkable
class BatchSource(Protocol):
    """What the training loop needs of a loader."""

    def next_batch(self) -> Batch:
        """The next batch, without end."""

    def one_pass(self, max_batches: int | None = None) -> Iterator[Batch]:
        """All batches once, for evaluation."""

    def state_dict(self) -> dict[str, Any]:
        """All that decides which batches follow."""


class PackedDataLoader:
    """Endless batches; within an epoch every token of the file is the label of exactly one position.

    The order is a permutation of the sequences drawn from (seed, epoch), one array of integers an epoch. A batch that
    reaches the end of an epoch is filled up from the next one, so that all batches are full and nothing is dropped.
    """

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
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.end_of_text_id = end_of_text_id
        self.seed = seed
        self.shuffle = shuffle
        self.num_sequences = -(-len(self.tokens) // sequence_length)  # rounded up: the tail is a sequence too
        self.epoch = 0
        self.position = 0  # sequences of this epoch that were given out
        self._order = self._order_of_epoch()

    def next_batch(self) -> Batch:
        """The next B sequences."""
        rows: list[int] = []
        while len(rows) < self.batch_size:
            if self.position == self.num_sequences:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._order_of_epoch()
            taken = self._order[self.position : self.position + self.batch_size - len(rows)]
            self.position += len(taken)
            rows.extend(taken.tolist())
        return self._read(rows)

    def one_pass(self, max_batches: int | None = None) -> Iterator[Batch]:
        """Every sequence once, in the order of the file, the last batch smaller; training's position stays."""
        starts = range(0, self.num_sequences, self.batch_size)
        for start in starts[:max_batches]:
            yield self._read(range(start, min(start + self.batch_size, self.num_sequences)))

    def state_dict(self) -> dict[str, Any]:
        """All that decides which batches follow; plain numbers, for JSON."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "num_sequences": self.num_sequences,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken. Raises `UserError` for the state of another token file or seed."""
        own = self.state_dict()
        for key in ("seed", "shuffle", "num_sequences"):
            if state[key] != own[key]:
                raise UserError(
                    f"the checkpoint's data order has {key} {state[key]}, this run has {own[key]}; "
                    "start over with --set pretrain.resume=false"
                )
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._order_of_epoch()

    def _order_of_epoch(self) -> Integer[np.ndarray, "S"]:
        """Which sequence comes when; a function of (seed, epoch) alone, so the shuffle state is two numbers."""
        # Four bytes a sequence: a corpus of 10 billion tokens in sequences of 1024 needs 40 MB.
        order = np.arange(self.num_sequences, dtype=np.uint32)
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        return order

    def _read(self, rows: list[int] | range) -> Batch:
        """Sequence i predicts tokens[i T : (i + 1) T] from the same tokens one place earlier."""
        B, T, end = len(rows), self.sequence_length, self.end_of_text_id
        stream = np.full((B, T + 1), end, dtype=np.int64)
        labels = np.full((B, T), IGNORED_LABEL, dtype=np.int64)
        for b, row in enumerate(rows):
            targets = self.tokens[row * T : (row + 1) * T]  # shorter than T only at the end of the file
            stream[b, 0] = self.tokens[row * T - 1] if row > 0 else end
            stream[b, 1 : len(targets) + 1] = targets
            labels[b, : len(targets)] = targets
        input_ids = stream[:, :T]
        return Batch(input_ids, labels, *document_layout(input_ids, end))


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
            f"{path} has {path.stat().st_size} bytes, but {path.with_suffix('.json').name} speaks of {facts['tokens']} "
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
    facts: dict[str, Any] = read_json(facts_path)
    if not {"dtype", "tokens", "bytes", "vocab_size"} <= facts.keys():
        raise UserError(
            f"{facts_path} does not describe a token file; run the stage `tokenizer` again with --force"
        )
    return facts
