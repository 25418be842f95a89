"""One token for each sequence, in as few operations as possible: the decode step of both families.

A small model generates at the speed at which Python launches operations, a large one at that at which memory delivers its weights. So
every intermediate result has its buffer, every view is made in advance, one step is about 20 operations a block, and each weight is
read once, where it lies (shared_data/inference/decoder_weights.py). It gives what `model(...)` gives, to rounding; a test holds it to that.

Level 1 has no such file (`model.generate` runs the ordinary forward pass); level 3 is the same in NumPy. Theory: decoder.md.

    decoder = Decoder(model, cache, starts); logits = decoder.step(ids)
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shared_data.inference.decoder_weights import Norm, decoder_weights
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.rope import rotary_frequencies, rotary_scale
from v2_handwritten.inference.kv_cache import KVCache
from v2_handwritten.inference.quantized_matrices import QuantizedMatrix, joined, matrices_of
from v2_handwritten.models.blocks.rope import rotary_tables
from v2_handwritten.models.transformer import Transformer

WINDOW_STEP = 64  # slots by which the attended window grows, so that its views are rarely made anew


class Decoder:
    """Decodes B sequences in step, after the ordinary forward pass has put their prompts into `cache`.

    `starts` [B] is how many slots of padding stand left of each prompt. `step` overwrites the logits it returned before.
    Shapes do not change between the steps of a window, and nothing but `ids` comes from outside.
    """

    def __init__(self, model: Transformer, cache: KVCache, starts: Int[Tensor, " B"]) -> None:
        self.config, self.cache = model.config, cache
        self.weights = decoder_weights(model.config, matrices_of(model), joined, torch.cat)
        self.like: dict[str, Any] = {"dtype": model.lm_head.weight.dtype, "device": starts.device}
        self._allocate(len(starts))
        self.position_ids = cache.length - starts  # of the token that comes next
        if self.weights.positions is None:
            self.rotation = _rotation_table(self.config, cache.max_length, self.like)
        else:  # a row that has stopped is decoded on with the others, to positions that the model may not have
            slots = torch.arange(cache.max_length, device=starts.device)
            self.positions = self.weights.positions[slots.clamp(max=len(self.weights.positions) - 1)]
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
        self.row_and_epsilon = torch.full((B, C + 1), math.sqrt(C * epsilon), **like)
        self.row = self.row_and_epsilon[:, :C]
        self.x = (
            torch.empty(B, C, **like) if gpt2 else self.row
        )  # the residual stream; RMSNorm divides it as it is
        wide = torch.float64 if like["dtype"] == torch.float64 else torch.float32
        self.length = torch.empty(B, 1, dtype=wide, device=like["device"])
        self.normalized = torch.empty(B, C, **like)
        self.qkv = torch.empty(B, (H + 2 * K) * D, **like)
        self.rotated = self.qkv[:, : (H + K) * D]  # all queries and keys
        self.other = torch.empty(B, (H + K) * D, **like)
        columns = torch.arange(self.other.shape[1], device=like["device"])
        self.other_half = columns.view(-1, 2, D // 2).flip(1).flatten() if not gpt2 else columns
        heads = self.qkv.view(B, H + 2 * K, D)
        self.query_heads = heads[:, :H]
        self.key_value = heads[:, H:].unflatten(1, (2, K)).transpose(0, 1)  # [2, B, K, D]
        self.scale = D**-0.5
        self.queries = torch.empty(B * K, H // K, D, **like)
        self.scaled_heads = self.queries.view(B, H, D)
        self.context = torch.empty(B * K, H // K, D, **like)
        self.context_rows = self.context.view(B, H * D)
        self.hidden = torch.empty(B, F if gpt2 else 2 * F, **like)
        self.activated = torch.empty(B, F, **like)
        self._activate = _activation(config, self.hidden, self.activated)
        self.logits = torch.empty(B, V, **like)

    def _mask_of_unwritten_slots(self, starts: Int[Tensor, " B"]) -> Float[Tensor, "BK 1 S"]:
        """Additive: -inf for padding, and for the slots that come later; a step opens the one it writes."""
        slots = torch.arange(self.cache.max_length, device=starts.device)
        hidden = (slots < starts[:, None]) | (slots >= self.cache.length)
        mask = torch.zeros(hidden.shape, **self.like).masked_fill_(hidden, -torch.inf)
        return mask[:, None].repeat_interleave(self.config.num_key_value_heads, dim=0)

    def step(self, ids: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Put `ids` into the cache; return the logits of what follows. Call it inside `torch.inference_mode()`."""
        slot, weights = self.cache.length, self.weights
        assert slot < self.cache.max_length, f"all {slot} slots of the cache are taken"
        if slot >= self.window:
            self._open_window()
        x, qkv = self.x, self.qkv
        torch.index_select(weights.embedding, 0, ids, out=x)
        if weights.positions is not None:
            x.add_(self.positions.index_select(0, self.position_ids))
        else:
            cos, sin = self.rotation.index_select(0, self.position_ids).unbind(1)
        self.mask.select(2, slot).zero_()
        slots = self.cache.states[0].select(4, slot).unbind()  # of each layer, where this key and value go

        for block, key_value_slot, (keys, values) in zip(weights.blocks, slots, self.windows, strict=True):
            self._normalize(block.norm)
            _multiply(self.normalized, block.qkv, block.qkv_bias, qkv)
            if weights.positions is None:
                torch.index_select(qkv, 1, self.other_half, out=self.other)
                self.rotated.mul_(cos).addcmul_(self.other, sin)
            key_value_slot.copy_(self.key_value)
            torch.mul(self.query_heads, self.scale, out=self.scaled_heads)
            scores = torch.baddbmm(self.window_mask, self.queries, keys)
            torch.bmm(scores.softmax(-1), values, out=self.context)
            _add_product(x, self.context_rows, block.out)
            if block.out_bias is not None:
                x.add_(block.out_bias)

            self._normalize(block.mlp_norm)
            _multiply(self.normalized, block.up, block.up_bias, self.hidden)
            self._activate()
            _add_product(x, self.activated, block.down)
            if block.down_bias is not None:
                x.add_(block.down_bias)

        self._normalize(weights.norm)
        torch.mm(self.normalized, weights.head, out=self.logits)
        self.cache.length += 1
        self.position_ids.add_(1)
        return self.logits

    def _open_window(self) -> None:
        """Views of the cache that the next steps attend to, up to a multiple of WINDOW_STEP slots."""
        self.window = min(self.cache.max_length, (self.cache.length // WINDOW_STEP + 1) * WINDOW_STEP)
        self.window_mask = self.mask[:, :, : self.window]
        states = self.cache.states[0].flatten(2, 3)  # [L, 2, B K, S, D]
        self.windows = [(k[:, : self.window].transpose(1, 2), v[:, : self.window]) for k, v in states]

    def _normalize(self, norm: Norm) -> None:
        """normalized = √C g · x / √(Σ x² + C ε), which is RMSNorm; of x without its mean, and + b, LayerNorm."""
        if norm.bias is not None:
            torch.sub(self.x, self.x.mean(-1, keepdim=True), out=self.row)
        torch.linalg.vector_norm(
            self.row_and_epsilon, dim=-1, keepdim=True, dtype=self.length.dtype, out=self.length
        )
        torch.div(self.row, self.length, out=self.normalized).mul_(norm.scale)
        if norm.bias is not None:
            self.normalized.add_(norm.bias)


def _multiply(
    x: Tensor, matrices: Sequence[Tensor | QuantizedMatrix], bias: Tensor | None, out: Tensor
) -> None:
    """The products of x with some matrices [in, out], side by side in `out`, and the bias."""
    parts = [out] if len(matrices) == 1 else out.split([matrix.shape[1] for matrix in matrices], dim=1)
    for matrix, part in zip(matrices, parts, strict=True):
        if isinstance(matrix, QuantizedMatrix):
            part.copy_(matrix(x))
        else:
            torch.mm(x, matrix, out=part)
    if bias is not None:
        out.add_(bias)


def _add_product(x: Tensor, y: Tensor, matrix: Tensor | QuantizedMatrix) -> None:
    """x += y W"""
    if isinstance(matrix, QuantizedMatrix):
        x.add_(matrix(y))
    else:
        x.addmm_(y, matrix)


def _activation(config: ModelConfig, hidden: Tensor, activated: Tensor) -> Callable[[], None]:
    """The function between `up` and `down`, which reads `hidden` and writes `activated`."""
    F = config.intermediate_size

    def silu_gate(gate: Tensor = hidden[:, :F], up: Tensor = hidden[:, F:]) -> None:
        """gate · sigmoid(gate) · up"""
        torch.sigmoid(gate, out=activated).mul_(gate).mul_(up)

    def gelu() -> None:
        """x / 2 · (1 + erf(x / √2))"""
        torch.mul(hidden, math.sqrt(0.5), out=activated).erf_().add_(1).mul_(hidden).mul_(0.5)

    root = torch.full_like(hidden, math.sqrt(8 / math.pi))

    def gelu_new() -> None:
        """x / 2 · (1 + tanh z) = x · sigmoid(2 z), and 2 z = x · (√(8/π) + 0.044715 √(8/π) x²)."""
        torch.addcmul(root, hidden, hidden, value=0.044715 * math.sqrt(8 / math.pi), out=activated)
        activated.mul_(hidden).sigmoid_().mul_(hidden)

    return {"silu": silu_gate, "gelu": gelu, "gelu_new": gelu_new}[config.hidden_act]


def _rotation_table(config: ModelConfig, length: int, like: dict[str, Any]) -> Float[Tensor, "P 2 R"]:
    """For each position and column of all queries and keys: the cosine, and the sine that multiplies the other half of its head.

    x · cos + other half · (-sin, sin) rotates the pairs (i, i + D/2).
    """
    wide = torch.float64 if like["dtype"] == torch.float64 else torch.float32
    positions = torch.arange(length, device=like["device"])
    tables = rotary_tables(rotary_frequencies(config), positions[None], wide, rotary_scale(config))
    cos, sin = (part[0] for part in tables)
    heads = config.num_attention_heads + config.num_key_value_heads
    of_a_head = torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)], 1)  # [P, 2, D]
    return of_a_head.repeat(1, 1, heads).to(like["dtype"])
