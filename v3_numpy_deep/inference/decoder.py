"""One token for each sequence, in as few operations as possible: the decode step of both families.

A small model generates at the speed at which Python launches operations, a large one at that at which memory delivers its weights. So
every intermediate result has its buffer, every view is made in advance, one step is about 20 operations a block, and each weight is
read once, where it lies (shared_data/inference/decoder_weights.py). It gives what `model(...)` gives, to rounding; a test holds it to that.

Level 1 has no such file (`model.generate` runs the ordinary forward pass); level 2 is the same in torch.
Theory: v2_handwritten/inference/decoder.md.

    decoder = Decoder(model, cache, starts); logits = decoder.step(ids)
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from shared_data.inference.decoder_weights import Norm, decoder_weights
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.rope import rotary_frequencies, rotary_scale
from shared_data.peft.adapted_model import merged_state_dict
from v3_numpy_deep.autograd import Array, Tensor
from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.inference.kv_cache import KVCache
from v3_numpy_deep.models.blocks.rope import rotary_tables
from v3_numpy_deep.models.transformer import Transformer
from v3_numpy_deep.models.weight_layout import side_by_side

WINDOW_STEP = 64  # slots by which the attended window grows, so that its views are rarely made anew


class Decoder:
    """Decodes B sequences in step, after the ordinary forward pass has put their prompts into `cache`.

    `starts` [B] is how many slots of padding stand left of each prompt. `step` overwrites the logits it returned before.
    Shapes do not change between the steps of a window, and nothing but `ids` comes from outside.
    """

    def __init__(self, model: Transformer, cache: KVCache, starts: Int[Array, " B"]) -> None:
        self.config, self.cache = model.config, cache
        weights = merged_state_dict(model)  # the model's own, but where it has adapters
        self.weights = decoder_weights(model.config, weights, side_by_side, np.concatenate)
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
        # A row and one more column, √(C ε): the length of both is √(Σ x² + C ε), which a norm divides by.
        epsilon = config.layer_norm_epsilon if gpt2 else config.rms_norm_eps
        self.row_and_epsilon = np.full((B, C + 1), math.sqrt(C * epsilon), **like)
        self.row = self.row_and_epsilon[:, :C]
        self.x = (
            np.empty((B, C), **like) if gpt2 else self.row
        )  # the residual stream; RMSNorm divides it as it is
        self.length = np.empty((B, 1), **like)
        self.normalized = np.empty((B, C), **like)
        self.added = np.empty((B, C), **like)
        self.qkv = np.empty((B, (H + 2 * K) * D), **like)
        self.rotated = self.qkv[:, : (H + K) * D]  # all queries and keys
        self.other = np.empty((B, (H + K) * D), **like)
        columns = np.arange(self.other.shape[1])
        self.other_half = np.flip(columns.reshape(-1, 2, D // 2), 1).ravel() if not gpt2 else columns
        heads = self.qkv.reshape(B, H + 2 * K, D)
        self.query_heads = heads[:, :H]
        self.key_value = heads[:, H:].reshape(B, 2, K, D).transpose(1, 0, 2, 3)  # [2, B, K, D]
        self.scale = like["dtype"].type(D**-0.5)
        self.queries = np.empty((B * K, H // K, D), **like)
        self.scaled_heads = self.queries.reshape(B, H, D)
        self.largest = np.empty((B * K, H // K, 1), **like)
        self.context = np.empty((B * K, H // K, D), **like)
        self.context_rows = self.context.reshape(B, H * D)
        self.hidden = np.empty((B, F if gpt2 else 2 * F), **like)
        self.activated = np.empty((B, F), **like)
        self._activate = _activation(config, self.hidden, self.activated)
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
        slots = self.cache.states[0][:, :, :, :, slot]  # of each layer, where this key and value go

        for block, key_value_slot, (keys, values) in zip(weights.blocks, slots, self.windows, strict=True):
            self._normalize(block.norm)
            _multiply(self.normalized, block.qkv, block.qkv_bias, qkv)
            if weights.positions is None:
                qkv.take(self.other_half, axis=1, out=self.other, mode="clip")
                np.multiply(self.rotated, cos, out=self.rotated)
                self.rotated += np.multiply(self.other, sin, out=self.other)
            np.copyto(key_value_slot, self.key_value)
            np.multiply(self.query_heads, self.scale, out=self.scaled_heads)
            self._attend(keys, values)
            x += np.matmul(self.context_rows, block.out, out=self.added)
            if block.out_bias is not None:
                x += block.out_bias

            self._normalize(block.mlp_norm)
            _multiply(self.normalized, block.up, block.up_bias, self.hidden)
            self._activate()
            x += np.matmul(self.activated, block.down, out=self.added)
            if block.down_bias is not None:
                x += block.down_bias

        self._normalize(weights.norm)
        np.matmul(self.normalized, weights.head, out=self.logits)
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
        states = self.cache.states[0].reshape(L, 2, B * K, S, D)
        self.windows = [(k[:, : self.window].transpose(0, 2, 1), v[:, : self.window]) for k, v in states]

    def _normalize(self, norm: Norm) -> None:
        """normalized = √C g · x / √(Σ x² + C ε), which is RMSNorm; of x without its mean, and + b, LayerNorm."""
        length = self.length
        if norm.bias is not None:
            np.subtract(self.x, self.x.mean(-1, keepdims=True), out=self.row)
        np.vecdot(self.row_and_epsilon, self.row_and_epsilon, out=length[:, 0])
        np.sqrt(length, out=length)
        np.divide(self.row, length, out=self.normalized)
        self.normalized *= norm.scale
        if norm.bias is not None:
            self.normalized += norm.bias


def _multiply(x: Array, matrices: Sequence[Array], bias: Array | None, out: Array) -> None:
    """The products of x with some matrices [in, out], side by side in `out`, and the bias."""
    begin = 0
    for matrix in matrices:
        end = begin + matrix.shape[1]
        np.matmul(x, matrix, out=out[:, begin:end])
        begin = end
    if bias is not None:
        out += bias


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


def _rotation_table(config: ModelConfig, length: int, like: dict[str, Any]) -> Float[Array, "P 2 R"]:
    """For each position and column of all queries and keys: the cosine, and the sine that multiplies the other half of its head.

    x · cos + other half · (-sin, sin) rotates the pairs (i, i + D/2).
    """
    positions = np.arange(length)
    scale = rotary_scale(config)
    tables = rotary_tables(rotary_frequencies(config), positions[None], like["dtype"].type, scale)
    cos, sin = (part[0] for part in tables)
    heads = config.num_attention_heads + config.num_key_value_heads
    of_a_head = np.stack([np.concatenate([cos, cos], -1), np.concatenate([-sin, sin], -1)], 1)  # [P, 2, D]
    return np.tile(of_a_head, (1, 1, heads))
