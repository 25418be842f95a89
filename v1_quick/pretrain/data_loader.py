"""Packed batches as torch's `IterableDataset`: what the `Trainer` collates are exactly the batches of levels 2 and 3.

The theory is in v2_handwritten/pretrain/data_loader.md. The library call: `Trainer(train_dataset=loader)` makes a
`torch.utils.data.DataLoader` over `__iter__` and stacks B sequences. HF models find the documents of a packed sequence in
`position_ids` (a position that does not follow its neighbour begins a document), so they need no mask.

    PackedDataLoader("runs/v1/tiny/tokenizer/train.bin", 16, 256, end_of_text_id=0, seed=0).next_batch()
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Integer

from shared_data.errors import UserError
from shared_data.files import read_json

IGNORED_LABEL = -100  # `ignore_index` of torch.nn.functional.cross_entropy


@dataclass(frozen=True)
class Batch:
    """B packed sequences: `labels[b, t]` is the token that follows `input_ids[b, t]`."""

    input_ids: Int64[np.ndarray, "B T"]
    labels: Int64[np.ndarray, "B T"]
    position_ids: Int64[np.ndarray, "B T"]
    document_ids: Int64[np.ndarray, "B T"]

    @property
    def num_targets(self) -> int:
        """How many positions of the batch are predictions."""
        return int(np.count_nonzero(self.labels != IGNORED_LABEL))


class PackedDataLoader(torch.utils.data.IterableDataset):
    """Endless sequences in a seeded order; within an epoch every token is the label of exactly one position."""

    def __init__(
        self,
        path: str | Path,
        batch_size: int,
        sequence_length: int,
        end_of_text_id: int,
        seed: int,
        shuffle: bool = True,
    ) -> None:
        facts = read_token_facts(path)
        if facts["tokens"] < sequence_length:
            raise UserError(
                f"{path} holds {facts['tokens']} tokens, less than one sequence of {sequence_length}; "
                "bring more text or lower pretrain.sequence_length"
            )
        self.tokens = open_tokens(path)
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.end_of_text_id = end_of_text_id
        self.seed = seed
        self.shuffle = shuffle
        self.num_sequences = -(-len(self.tokens) // sequence_length)
        self.epoch = 0
        self.position = 0
        self._order = self._order_of_epoch()

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            if self.position == self.num_sequences:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._order_of_epoch()
            self.position += 1
            yield self._sequence(int(self._order[self.position - 1]))

    def next_batch(self) -> Batch:
        """The next B sequences."""
        return _collate(islice(self, self.batch_size))

    def one_pass(self, max_batches: int | None = None) -> Iterator[Batch]:
        """Every sequence once, in the order of the file, the last batch smaller; training's position stays."""
        sequences = map(self._sequence, range(self.num_sequences))
        starts = range(0, self.num_sequences, self.batch_size)
        for _ in starts[:max_batches]:
            yield _collate(islice(sequences, self.batch_size))

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
        """Which sequence comes when; a function of (seed, epoch) alone."""
        order = np.arange(self.num_sequences, dtype=np.uint32)
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        return order

    def _sequence(self, row: int) -> dict[str, torch.Tensor]:
        """Sequence i predicts tokens[i T : (i + 1) T] from the same tokens one place earlier."""
        T, end = self.sequence_length, self.end_of_text_id
        stream = np.full(T + 1, end, dtype=np.int64)
        labels = np.full(T, IGNORED_LABEL, dtype=np.int64)
        targets = self.tokens[row * T : (row + 1) * T]
        stream[0] = self.tokens[row * T - 1] if row > 0 else end
        stream[1 : len(targets) + 1] = targets
        labels[: len(targets)] = targets
        position_ids, document_ids = document_layout(stream[None, :T], end)
        arrays = (stream[:T], labels, position_ids[0], document_ids[0])
        names = ("input_ids", "labels", "position_ids", "document_ids")
        return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}


def _collate(sequences: Iterable[dict[str, torch.Tensor]]) -> Batch:
    """What the `Trainer`'s DataLoader does, as NumPy arrays."""
    batch = torch.utils.data.default_collate(list(sequences))
    return Batch(**{name: tensor.numpy() for name, tensor in batch.items()})


def document_layout(
    input_ids: Int64[np.ndarray, "B T"], end_of_text_id: int
) -> tuple[Int64[np.ndarray, "B T"], Int64[np.ndarray, "B T"]]:
    """Position within the document and number of the document, for every token."""
    begins = input_ids == end_of_text_id
    begins[:, 0] = True
    column = np.arange(input_ids.shape[1])
    last_begin = np.maximum.accumulate(np.where(begins, column, 0), axis=1)
    return column - last_begin, np.cumsum(begins, axis=1) - 1


def open_tokens(path: str | Path) -> np.ndarray:
    """The token file as a read-only array that the operating system pages in."""
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
        return np.empty(0, dtype)
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
