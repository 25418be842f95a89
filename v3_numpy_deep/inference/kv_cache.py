"""The keys and values of the tokens so far, so that each new token costs one step and not a whole forward pass.

Causal attention never changes what an earlier token looked like, so its keys and values can be kept (Pope et al. 2022,
section 3). Memory is allocated once for `max_length` tokens: appending is a copy into a slice, never a concatenation.

Level 1 leaves this to transformers (`DynamicCache` inside `generate`); level 2 is the same in torch.
Theory: v2_handwritten/inference/kv_cache.md.

    uv run python -c "from v3_numpy_deep.inference.kv_cache import *; from shared_data.model_files.config import ModelConfig; print(bytes_per_token(ModelConfig()))"
"""

import copy
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from shared_data.model_files.config import ModelConfig
from v3_numpy_deep.autograd import Array


class KVCache:
    """Keys and values of all layers, for B sequences that grow together.

    The protocol with the model: every layer of a forward pass calls `update` once with its T new positions, in order.
    `length`, the number of positions that were there before the pass, moves on when the last layer has been updated.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        dtype: Any = np.float32,
        device: str = "cpu",
    ) -> None:
        L, K, D = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        # Zeros, not empty: a slot not yet written is read with a weight of zero (decoder.py), and 0 * NaN is NaN.
        self.states: Float[Array, "L 2 B K S D"] = np.zeros((L, 2, batch_size, K, max_length, D), dtype)
        self.max_length = max_length
        self.length = 0

    def update(
        self, layer: int, k: Float[Array, "B K T D"], v: Float[Array, "B K T D"]
    ) -> tuple[Float[Array, "B K S D"], Float[Array, "B K S D"]]:
        """Append the keys (already rotated) and values of T new positions; return those of all S positions so far."""
        start, end = self.length, self.length + k.shape[2]
        assert end <= self.max_length, f"the cache holds {self.max_length} positions, {end} are needed"
        keys, values = self.states[layer]
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        if layer == len(self.states) - 1:
            self.length = end
        return keys[:, :, :end], values[:, :, :end]

    def spread(self, rows: Int[Array, " N"], max_length: int) -> "KVCache":
        """A cache for N sequences, of which sequence n goes on from `rows[n]` of this one: completions of the same prompt."""
        L, _, _, K, _, D = self.states.shape
        cache = copy.copy(self)
        cache.states = np.zeros((L, 2, len(rows), K, max_length, D), self.states.dtype)
        cache.states[..., : self.length, :] = self.states[:, :, rows, :, : self.length]
        cache.max_length = max_length
        return cache


def bytes_per_token(config: ModelConfig, bytes_per_number: int = 4) -> int:
    """Memory one token takes in the cache: a key and a value of D numbers for each of K heads in each layer."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * bytes_per_number
