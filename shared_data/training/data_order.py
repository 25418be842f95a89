"""Which examples come next: endless, shuffled anew in every epoch, and resumable from two numbers.

The order of an epoch is a function of (seed, epoch) alone, so the state is the epoch and how many of its examples were taken. Every
loader of levels 2 and 3 has one: packed documents, packed conversations, preference pairs, prompts.

    order = DataOrder(len(examples), seed=0); rows = order.take(16)
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shared_data.errors import UserError


class DataOrder:
    """Endless indices of `size` examples; `arrange(order)`, where given, groups them into rows first (packing)."""

    def __init__(
        self,
        size: int,
        seed: int,
        shuffle: bool = True,
        arrange: Callable[[np.ndarray], Sequence[Any]] | None = None,
    ) -> None:
        self.size, self.seed, self.shuffle = size, seed, shuffle
        self.arrange = arrange
        self.epoch = 0
        self.position = 0  # of this epoch's rows, how many were taken
        self.rows = self._rows_of_epoch()

    def take(self, count: int) -> list[Any]:
        """The next `count` rows; what one epoch has too few of comes from the next one, so that nothing is dropped."""
        taken: list[Any] = []
        while len(taken) < count:
            if self.position == len(self.rows):
                self.epoch, self.position = self.epoch + 1, 0
                self.rows = self._rows_of_epoch()
            new = self.rows[self.position : self.position + count - len(taken)]
            self.position += len(new)
            taken.extend(new)
        return taken

    def state_dict(self) -> dict[str, Any]:
        """All that decides what follows; plain numbers, for JSON."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "size": self.size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken. Raises `UserError` for the state of other data or another seed."""
        own = self.state_dict()
        for key in ("seed", "shuffle", "size"):
            if state.get(key) != own[key]:
                raise UserError(
                    f"the checkpoint's data order has {key} {state.get(key)}, this run has {own[key]}; start over with --force"
                )
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self.rows = self._rows_of_epoch()

    def _rows_of_epoch(self) -> Sequence[Any] | np.ndarray:
        # Four bytes an example: a corpus of 10 billion tokens in sequences of 1024 needs 40 MB.
        order = np.arange(self.size, dtype=np.uint32)
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        return order if self.arrange is None else self.arrange(order)
