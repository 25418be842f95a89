"""One token for each sequence, in as few operations as possible: the decode step of both families.

A small model generates at the speed at which Python launches operations, not at the speed of the arithmetic. So the
weights are fused and folded once (decoder_weights.py), every intermediate result has its buffer, every view is made
in advance, and one step is about 20 operations a block. It gives what `model(...)` gives, to rounding; a test holds it to that.

Level 1 has no such file (`model.generate` runs the ordinary forward pass); level 3 is the same in NumPy. Theory: decoder.md.

    decoder = Decoder(model, cache, starts); logits = decoder.step(ids)
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from v2_handwritten.inference.decoder_weights import DecoderWeights, fuse_weights
from v2_handwritten.inference.kv_cache import KVCache
from v2_handwritten.models.blocks.rope import rotary_frequencies, rotary_tables
from v2_handwritten.models.config import ModelConfig
from v2_handwritten.models.transformer import Transformer

WINDOW_STEP = 64  # slots by which the attended window grows, so that its views are rarely made anew


class Decoder:
    """Decodes B sequences in step, after the ordinary forward pass has put their prompts into `cache`.

    `starts` [B] is how many slots of padding stand left of each prompt. `step` overwrites the logits it returned before.
    Shapes do not change between the steps of a window, and nothing but `ids` comes from outside.
    """

    @torch.inference_mode()
    def __init__(self, model: Transformer, cache: KVCache, starts: Int[Tensor, " B"]) -> None:
        config: ModelConfig = model.config
        weights = fuse_weights(model)
        B, C, F = len(starts), config.hidden_size, config.intermediate_size
        H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        like = {"dtype": weights.embedding.dtype, "device": weights.embedding.device}
        gpt2 = config.model_type == "gpt2"
        self.weights, self.cache = weights, cache

        self.x = torch.empty(B, C, **like)  # the residual stream
        self.epsilon = torch.full(
            (1, 1, 1), config.layer_norm_epsilon if gpt2 else config.rms_norm_eps, **like
        )
        self.scale = torch.empty(B, 1, 1, **like)
        self.x_views = self.x[:, None], self.x[:, :, None], self.scale[:, 0]
        self.normalized = torch.empty(B, C, **like)
        self.qkv = torch.empty(B, (H + 2 * K) * D, **like)
        self.context = torch.empty(B * K, H // K, D, **like)
        self.hidden = torch.empty(B, F if gpt2 else 2 * F, **like)
        self.activated = torch.empty(B, F, **like)
        self.logits = torch.empty(B, config.vocab_size, **like)
        self._activate = _activation(config, self.hidden, self.activated)
        # Views of one product q, k, v: queries [B K, G, D], and key and value side by side [2, B K, D].
        grouped = self.qkv.view(B * K, H // K + 2, D)
        self.queries, self.key_value = grouped[:, :-2], grouped[:, -2:].transpose(0, 1)

        self.position_ids = cache.length - starts  # of the token that comes next
        self.last_position = config.max_position_embeddings - 1
        if not gpt2:
            self.rotation = _rotation_table(config, weights, cache.max_length)
            self.other_half = (
                torch.arange(self.qkv.shape[1], device=like["device"]).view(-1, 2, D // 2).flip(1).flatten()
            )
            self.other = torch.empty_like(self.qkv)
        # Additive: -inf for padding and for slots that are not written yet.
        slots = torch.arange(cache.max_length, device=starts.device)
        visible = (slots >= starts[:, None]) & (slots < cache.length)
        self.mask = torch.zeros(B, 1, cache.max_length, **like).masked_fill_(~visible[:, None], -torch.inf)
        self.mask = self.mask.repeat_interleave(K, dim=0)  # [B K, 1, S]
        self.window = 0

    @torch.inference_mode()
    def step(self, ids: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Logits of the token after `ids`, which are put into the cache; -inf of no row depends on another row."""
        slot, weights = self.cache.length, self.weights
        assert slot < self.cache.max_length, f"all {slot} slots of the cache are taken"
        if slot >= self.window:
            self._open_window()
        x, qkv, context = self.x, self.qkv, self.context.view(len(self.x), -1)
        torch.index_select(weights.embedding, 0, ids, out=x)
        if weights.positions is not None:
            x.add_(weights.positions.index_select(0, self.position_ids))
        else:
            cos, sin = self.rotation.index_select(0, self.position_ids).unbind(1)
        self.mask[:, :, slot].zero_()
        slots = self.states.select(3, slot).unbind()  # of each layer, where this key and value go

        for block, key_value_slot, (keys, values) in zip(weights.blocks, slots, self.windows, strict=True):
            self._normalize()
            _linear(self.normalized, block.qkv, block.qkv_bias, qkv)
            if weights.positions is None:  # rotate queries and keys; for values, cos is 1 and sin 0
                torch.index_select(qkv, 1, self.other_half, out=self.other)
                qkv.mul_(cos).addcmul_(self.other, sin)
            key_value_slot.copy_(self.key_value)
            scores = torch.baddbmm(self.window_mask, self.queries, keys)
            torch.bmm(scores.softmax(-1), values, out=self.context)
            x.addmm_(context, block.out)
            if block.out_bias is not None:
                x.add_(block.out_bias)

            self._normalize()
            _linear(self.normalized, block.up, block.up_bias, self.hidden)
            self._activate()
            x.addmm_(self.activated, block.down)
            if block.down_bias is not None:
                x.add_(block.down_bias)

        self._normalize()
        _linear(self.normalized, weights.head, weights.head_bias, self.logits)
        self.cache.length += 1
        # A row that has been stopped is decoded on with the others; its positions need not exist.
        self.position_ids.add_(1).clamp_(max=self.last_position)
        return self.logits

    def _open_window(self) -> None:
        """Views of the cache that the next steps attend to, up to a multiple of WINDOW_STEP slots."""
        self.window = min(self.cache.max_length, (self.cache.length // WINDOW_STEP + 1) * WINDOW_STEP)
        self.window_mask = self.mask[:, :, : self.window]
        self.states = self.cache.states.flatten(2, 3)  # [L, 2, B K, S, D]
        self.windows = [(k[:, : self.window].transpose(1, 2), v[:, : self.window]) for k, v in self.states]

    def _normalize(self) -> None:
        """normalized = x / sqrt(mean of x² + epsilon): RMSNorm without its scale, and a LayerNorm of what has no mean."""
        x = self.x
        if x.dtype in (torch.float32, torch.float64):  # one product is the mean square of every row
            x_row, x_column, scale = self.x_views
            torch.baddbmm(self.epsilon, x_row, x_column, alpha=1 / x.shape[1], out=self.scale).rsqrt_()
            torch.mul(x, scale, out=self.normalized)
        else:
            wide = x.float()
            mean_square = wide.square().mean(-1, keepdim=True)
            self.normalized.copy_(wide * (mean_square + self.epsilon[0].float()).rsqrt_())


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """out = x weight + bias"""
    if bias is None:
        torch.mm(x, weight, out=out)
    else:
        torch.addmm(bias, x, weight, out=out)


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


def _rotation_table(config: ModelConfig, weights: DecoderWeights, length: int) -> Float[Tensor, "P 2 Q"]:
    """For each position and column of q, k, v: the cosine, and the sine that multiplies the other half of its head.

    x · cos + other half · (-sin, sin) rotates the pairs (i, i + D/2); values are left alone by a cosine of 1, a sine of 0.
    """
    like = weights.embedding
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    positions = torch.arange(min(length, config.max_position_embeddings), device=like.device)
    cos, sin = (part[0] for part in rotary_tables(rotary_frequencies(config), positions[None], dtype))
    K, G = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
    cos, sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)  # [P, D]
    group = [[cos] * (G + 1) + [torch.ones_like(cos)], [sin] * (G + 1) + [torch.zeros_like(sin)]]
    return torch.stack([torch.cat(heads * K, -1) for heads in group], 1).to(like.dtype)
