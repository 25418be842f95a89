"""The keys and values of the tokens so far, so that each new token costs one step and not a whole forward pass.

Causal attention never changes what an earlier token looked like, so its keys and values can be kept (Pope et al. 2022,
section 3). Memory is allocated once for `max_length` tokens: appending is a copy into a slice, never a concatenation.

Level 1 leaves this to transformers (`DynamicCache` inside `generate`); level 3 is the same in NumPy. Theory: kv_cache.md.

    uv run python -c "from v2_handwritten.inference.kv_cache import *; from shared_data.model_files.config import ModelConfig; print(bytes_per_token(ModelConfig()))"
"""

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shared_data.model_files.config import ModelConfig
from shared_data.model_files.size import cache_shapes


class KVCache:
    """Keys and values of all layers, for B sequences that grow together. Latent attention keeps its latents and rotated keys instead.

    The protocol with the model: every layer of a forward pass calls `update` once with its T new positions, in order.
    `length`, the number of positions that were there before the pass, moves on when the last layer has been updated.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        # Zeros, not empty: a slot not yet written is read with a weight of zero (decoder.py), and 0 * NaN is NaN.
        self.states: list[Float[Tensor, "L n B K S D"]] = [
            torch.zeros(config.num_hidden_layers, n, batch_size, K, max_length, D, dtype=dtype, device=device)
            for n, K, D in cache_shapes(config)
        ]
        self.max_length = max_length
        self.length = 0

    def update(self, layer: int, *new: Float[Tensor, "B _ T _"]) -> tuple[Float[Tensor, "B _ S _"], ...]:
        """Append the states of T new positions (keys already rotated, values); return those of all S positions so far, in their type."""
        start, end = self.length, self.length + new[0].shape[2]
        assert end <= self.max_length, f"the cache holds {self.max_length} positions, {end} are needed"
        # A layer without an indexer has no key of one.
        states = [state for group in self.states for state in group[layer]][: len(new)]
        for state, x in zip(states, new, strict=True):
            state[:, :, start:end].copy_(x)
        if layer == len(self.states[0]) - 1:
            self.length = end
        return tuple(state[:, :, :end].to(x.dtype) for state, x in zip(states, new, strict=True))

    def spread(self, rows: Int[Tensor, " N"], max_length: int) -> "KVCache":
        """A cache for N sequences, of which sequence n goes on from `rows[n]` of this one: completions of the same prompt."""
        cache = copy.copy(self)
        cache.states = []
        for group in self.states:
            L, n, _, K, _, D = group.shape
            spread = group.new_zeros(L, n, len(rows), K, max_length, D)
            spread[..., : self.length, :] = group[:, :, rows, :, : self.length]
            cache.states.append(spread)
        cache.max_length = max_length
        return cache

    def reorder(self, rows: Int[Tensor, " B"]) -> None:
        """Let row b go on from what was row `rows[b]`: beams of one prompt. In place, since a decoder holds views of the states."""
        for group in self.states:
            so_far = group[..., : self.length, :]
            so_far.copy_(so_far[:, :, rows])


def bytes_per_token(config: ModelConfig, bytes_per_number: int = 4) -> int:
    """Memory one token takes in the cache: in each layer, a key and a value of D numbers for each of K heads; or a latent and a key."""
    numbers = sum(n * K * D for n, K, D in cache_shapes(config))
    return config.num_hidden_layers * numbers * bytes_per_number
