"""What `model.generate` returns and streams, row by row: up to the token that ends a row, after which the library pads.

Levels 2 and 3 have no such file: their loop knows where each row ends.

    TokenStreamer(lambda row, id: print(id), StoppingCriteriaList([EosTokenCriteria([0])]))
"""

from collections.abc import Callable

import torch
from transformers import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer


class TokenStreamer(BaseStreamer):
    """Passes each new token on as `on_token(row, id)`, up to the one that ends its row."""

    def __init__(self, on_token: Callable[[int, int], None], ends: StoppingCriteriaList) -> None:
        self.on_token, self.ends = on_token, ends
        self.ids: torch.Tensor | None = None

    def put(self, value: torch.Tensor) -> None:
        """The ids of the prompts first, then one new id of each row."""
        if self.ids is None:
            self.ids, self.ended = value, torch.zeros(len(value), dtype=torch.bool)
            return
        for row, id in enumerate(value.tolist()):
            if not self.ended[row]:
                self.on_token(row, id)
        self.ids = torch.cat([self.ids, value[:, None]], dim=1)
        self.ended |= self.ends(self.ids, None)

    def end(self) -> None:
        """Nothing is left to pass on."""


def until_end(ids: torch.Tensor, start: int, ends: StoppingCriteriaList) -> list[int]:
    """The new ids up to the first that ends the row, with it; after it the library pads."""
    lengths = range(start + 1, len(ids) + 1)
    length = next((length for length in lengths if ends(ids[None, :length], None)), len(ids))
    return ids[start:length].tolist()
