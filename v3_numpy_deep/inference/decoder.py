"""One token for each sequence, in as few operations as possible: the decode step of both families.

A small model generates at the speed at which Python launches operations, not at the speed of the arithmetic. So the
weights are fused and folded once (decoder_weights.py), every intermediate result has its buffer, every view is made
in advance, and one step is about 20 operations a block. It gives what `model(...)` gives, to rounding; a test holds it to that.

Level 1 has no such file (`model.generate` runs the ordinary forward pass); level 2 is the same in torch.
Theory: v2_handwritten/inference/decoder.md.

    decoder = Decoder(model, cache, starts); logits = decoder.step(ids)
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from shared_data.model_files.config import ModelConfig
from shared_data.model_files.rope import rotary_frequencies, rotary_scale
from v3_numpy_deep.autograd import Array, Tensor
from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.inference.decoder_weights import fuse_weights
from v3_numpy_deep.inference.kv_cache import KVCache
from v3_numpy_deep.models.blocks.rope import rotary_tables
from v3_numpy_deep.models.transformer import Transformer

WINDOW_STEP = 64  # slots by which the attended window grows, so that its views are rarely made anew


class Decoder:
    """Decodes B sequences in step, after the ordinary forward pass has put their prompts into `cache`.

    `starts` [B] is how many slots of padding stand left of each prompt. `step` overwrites the logits it returned before.
    Shapes do not change between the steps of a window, and nothing but `ids` comes from outside.
    """

    def __init__(self, model: Transformer, cache: KVCache, starts: Int[Array, " B"]) -> None:
        self.config, self.cache = model.config, cache
        self.weights = fuse_weights(model)
        self.like: dict[str, Any] = {"dtype": model.lm_head.weight.dtype}
        self._allocate(len(starts))
        self.position_ids = cache.length - starts  # of the token that comes next
        if self.weights.positions is None:
            self.rotation = _rotation_table(self.config, cache.max_length, self.like)
        else:  # a row that has stopped is decoded on with the others, to positions that the model may not have
            slots = np.arange(cache.max_length)
            self.positions = self.weights.positions[np.minimum(slots, len(self.weights.positions) - 1)]
        self.mask = self._mask_of_unwritten_slots(starts)
        self.window = 0

    def _allocate(self, B: int) -> None:
        """A buffer for every intermediate result, and the views of them that a step needs."""
        config, like = self.config, self.like
        C, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
        H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        gpt2 = config.model_type == "gpt2"
        # The residual stream x and one more column, √(C ε): a row's length is √(Σ x² + C ε), which a norm divides by.
        epsilon = config.layer_norm_epsilon if gpt2 else config.rms_norm_eps
        self.stream = np.full((B, C + 1), math.sqrt(C * epsilon), **like)
        self.x = self.stream[:, :C]
        self.length = np.empty((B, 1), **like)
        one = int(self.weights.has_biases)  # a last input of 1, which the biases multiply
        self.normalized_and_one = np.ones((B, C + one), **like)
        self.normalized = self.normalized_and_one[:, :C]
        self.added = np.empty((B, C), **like)
        self.qkv = np.empty((B, (H + 2 * K) * D), **like)
        self.other = np.empty_like(self.qkv)
        columns = np.arange(self.qkv.shape[1])
        self.other_half = np.flip(columns.reshape(-1, 2, D // 2), 1).ravel() if not gpt2 else columns
        # Views of one product q, k, v: queries [B K, G, D], and key and value side by side [2, B K, D].
        grouped = self.qkv.reshape(B * K, H // K + 2, D)
        self.queries, self.key_value = grouped[:, :-2], grouped[:, -2:].transpose(1, 0, 2)
        self.largest = np.empty((B * K, H // K, 1), **like)
        self.context = np.empty((B * K, H // K, D), **like)
        self.context_rows = self.context.reshape(B, H * D)
        self.hidden = np.empty((B, F if gpt2 else 2 * F), **like)
        self.activated_and_one = np.ones((B, F + one), **like)
        self._activate = _activation(config, self.hidden, self.activated_and_one[:, :F])
        self.logits = np.empty((B, V), **like)

    def _mask_of_unwritten_slots(self, starts: Int[Array, " B"]) -> Float[Array, "BK 1 S"]:
        """Additive: -inf for padding, and for the slots that come later; a step opens the one it writes."""
        slots = np.arange(self.cache.max_length)
        hidden = (slots < starts[:, None]) | (slots >= self.cache.length)
        mask = np.where(hidden, -np.inf, 0.0).astype(self.like["dtype"])
        return mask[:, None].repeat(self.config.num_key_value_heads, axis=0)

    def step(self, ids: Int[Array, " B"]) -> Float[Array, "B V"]:
        """Put `ids` into the cache; return the logits of what follows."""
        slot, weights = self.cache.length, self.weights
        assert slot < self.cache.max_length, f"all {slot} slots of the cache are taken"
        if slot >= self.window:
            self._open_window()
        x, qkv = self.x, self.qkv
        np.copyto(x, weights.embedding[ids])
        if weights.positions is not None:
            x += self.positions[self.position_ids]
        else:
            cos, sin = self.rotation[self.position_ids].transpose(1, 0, 2)
        self.mask[:, :, slot] = 0
        slots = self.states[:, :, :, slot]  # of each layer, where this key and value go

        for block, key_value_slot, (keys, values) in zip(weights.blocks, slots, self.windows, strict=True):
            self._normalize()
            np.matmul(self.normalized_and_one, block.qkv, out=qkv)
            if weights.positions is None:  # rotate queries and keys; for values, cos is 1 and sin 0
                qkv.take(self.other_half, axis=1, out=self.other, mode="clip")
                np.multiply(qkv, cos, out=qkv)
                qkv += np.multiply(self.other, sin, out=self.other)
            np.copyto(key_value_slot, self.key_value)
            self._attend(keys, values)
            x += np.matmul(self.context_rows, block.out, out=self.added)
            if block.out_bias is not None:
                x += block.out_bias

            self._normalize()
            np.matmul(self.normalized_and_one, block.up, out=self.hidden)
            self._activate()
            x += np.matmul(self.activated_and_one, block.down, out=self.added)

        self._normalize()
        np.matmul(self.normalized_and_one, weights.head, out=self.logits)
        self.cache.length += 1
        self.position_ids += 1
        return self.logits

    def _attend(self, keys: Float[Array, "BK D W"], values: Float[Array, "BK W D"]) -> None:
        """context = softmax(queries keys + mask) values; dividing by the sum comes last, where the array is small."""
        scores, largest = self.scores, self.largest
        np.matmul(self.queries, keys, out=scores)
        scores += self.window_mask
        scores -= np.maximum.reduce(scores, axis=-1, keepdims=True, out=largest)
        np.exp(scores, out=scores)
        np.matmul(scores, values, out=self.context)
        self.context /= np.add.reduce(scores, axis=-1, keepdims=True, out=largest)

    def _open_window(self) -> None:
        """Views of the cache that the next steps attend to, up to a multiple of WINDOW_STEP slots."""
        self.window = min(self.cache.max_length, (self.cache.length // WINDOW_STEP + 1) * WINDOW_STEP)
        self.window_mask = self.mask[:, :, : self.window]
        self.scores = np.empty((*self.queries.shape[:2], self.window), **self.like)
        L, _, B, K, S, D = self.cache.states[0].shape
        self.states = self.cache.states[0].reshape(L, 2, B * K, S, D)
        self.windows = [(k[:, : self.window].transpose(0, 2, 1), v[:, : self.window]) for k, v in self.states]

    def _normalize(self) -> None:
        """normalized = x / √(Σ x² + C ε): RMSNorm but for its scale and √C, and the LayerNorm of what has no mean."""
        length = self.length
        np.vecdot(self.stream, self.stream, out=length[:, 0])
        np.sqrt(length, out=length)
        np.divide(self.x, length, out=self.normalized)


def _activation(config: ModelConfig, hidden: Array, activated: Array) -> Callable[[], None]:
    """The function between `up` and `down`, which reads `hidden` and writes `activated`."""
    F = config.intermediate_size

    def silu_gate(gate: Array = hidden[:, :F], up: Array = hidden[:, F:]) -> None:
        """gate · sigmoid(gate) · up = h · (1 + tanh h) · up with h = gate / 2, which cannot overflow."""
        np.multiply(gate, 0.5, out=gate)
        np.add(np.tanh(gate, out=activated), 1, out=activated)
        np.multiply(activated, gate, out=activated)
        np.multiply(activated, up, out=activated)

    def gelu() -> None:
        """x / 2 · (1 + erf(x / √2))"""
        np.multiply(hidden, math.sqrt(0.5), out=activated)
        np.add(ops.erf(Tensor(activated)).data, 1, out=activated)
        np.multiply(activated, np.multiply(hidden, 0.5, out=hidden), out=activated)

    def gelu_new() -> None:
        """x / 2 · (1 + tanh(x · (√(2/π) + 0.044715 √(2/π) x²)))"""
        root = math.sqrt(2 / math.pi)
        np.multiply(np.multiply(hidden, hidden, out=activated), 0.044715 * root, out=activated)
        np.multiply(np.add(activated, root, out=activated), hidden, out=activated)
        np.add(np.tanh(activated, out=activated), 1, out=activated)
        np.multiply(activated, np.multiply(hidden, 0.5, out=hidden), out=activated)

    return {"silu": silu_gate, "gelu": gelu, "gelu_new": gelu_new}[config.hidden_act]


def _rotation_table(config: ModelConfig, length: int, like: dict[str, Any]) -> Float[Array, "P 2 Q"]:
    """For each position and column of q, k, v: the cosine, and the sine that multiplies the other half of its head.

    x · cos + other half · (-sin, sin) rotates the pairs (i, i + D/2); values are left alone by a cosine of 1, a sine of 0.
    """
    positions = np.arange(length)
    scale = rotary_scale(config)
    tables = rotary_tables(rotary_frequencies(config), positions[None], like["dtype"].type, scale)
    cos, sin = (part[0] for part in tables)
    cos, sin = np.concatenate([cos, cos], -1), np.concatenate([-sin, sin], -1)  # [P, D]
    K, G = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
    cos_of_group = [cos] * (G + 1) + [np.ones_like(cos)]
    sin_of_group = [sin] * (G + 1) + [np.zeros_like(sin)]
    return np.stack([np.concatenate(cos_of_group * K, -1), np.concatenate(sin_of_group * K, -1)], 1)
