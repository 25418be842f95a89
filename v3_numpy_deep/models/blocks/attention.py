"""Causal self-attention: softmax(q kᵀ / √D + mask) v, for multi-head, grouped-query and multi-query models.

Vaswani et al. 2017, section 3.2; MQA: Shazeer 2019; GQA: Ainslie et al. 2023. H query heads share K key-value heads: K = H
is MHA, K = 1 is MQA. Two kernels compute the same: `plain_causal_attention` from primitive operations; and the fused one,
in tiles of queries that never look at the keys after them, nor at those of other documents (autograd/fused/attention.py).

Level 1: transformers' `GPT2Attention` and `LlamaAttention`. Level 2: the same over torch, with torch's own kernel beside.

    python -c "import numpy as np; from v3_numpy_deep.models.blocks.attention import *; q = Tensor(np.ones((1, 4, 8, 16), 'f')); print(causal_attention(q, q, q).shape)"
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from shared_data.model_files.config import ModelConfig
from v3_numpy_deep.autograd import Array, Module, Tensor, fused
from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.autograd.fused.attention import Tile, plan_tiles, read_tiles
from v3_numpy_deep.models.blocks.dropout import dropout
from v3_numpy_deep.models.blocks.linear import Conv1D, Linear, fused_linear
from v3_numpy_deep.models.blocks.rope import apply_rotary

# Added to a score that must not count; finite, so that a row without any key stays free of NaN.
MASKED = -1e30


@runtime_checkable
class Cache(Protocol):
    """What attention needs of a key-value cache (inference/kv_cache.py)."""

    length: int

    def update(self, layer_index: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Append the new keys and values [B, K, T, D]; return those of all positions so far [B, K, S, D]."""


@dataclass
class SharedInputs:
    """What all blocks of one forward pass share."""

    mask: Float[Array, "#B T S"] | None = None  # None is plain causal
    rotary: tuple[Float[Array, "#B T half"], Float[Array, "#B T half"]] | None = None  # cos and sin (llama)
    cache: Cache | None = None
    generator: np.random.Generator | None = None  # draws the dropout masks
    tiles: list[list[Tile]] | None = (
        None  # which keys the fused kernel visits; follows from the mask, found once
    )
    read: Bool[Array, "B T"] | None = None  # the last block's output at these positions only, as rows [N, C]


def causal_mask(T: int, S: int, dtype: type = np.float32) -> Float[Array, "1 T S"]:
    """0 where query t may see key s, `MASKED` elsewhere; the T queries are the last of the S positions."""
    query = np.arange(S - T, S)[:, None]
    return _additive(np.arange(S) <= query, dtype)[None]


def document_mask(
    document_ids: Int[Array, "B T"], dtype: type = np.float32, branch_ids: Int[Array, "B T"] | None = None
) -> Float[Array, "B T T"]:
    """Causal attention within each document of a packed sequence: block-diagonal.

    With branches, a token sees of its document the trunk (branch 0) and its own branch, as if the others were not there.
    """
    same = document_ids[:, :, None] == document_ids[:, None, :]
    if branch_ids is not None:
        keys = branch_ids[:, None, :]
        same &= (keys == 0) | (branch_ids[:, :, None] == keys)
    return _additive(np.tril(same), dtype)


def padding_mask(
    attention_mask: Int[Array, "B S"] | Bool[Array, "B S"], T: int, dtype: type = np.float32
) -> Float[Array, "B T S"]:
    """Causal attention that leaves out the keys whose `attention_mask` is 0, as in Hugging Face's left padding."""
    S = attention_mask.shape[-1]
    return causal_mask(T, S, dtype) + _additive(attention_mask.astype(bool), dtype)[:, None]


def _additive(allowed: Array, dtype: type) -> Array:
    """0 where allowed, `MASKED` elsewhere."""
    return np.where(allowed, dtype(0), dtype(MASKED))


def softmax(scores: Float[Tensor, "*rows S"]) -> Float[Tensor, "*rows S"]:
    """exp(s) / Σ exp(s) over the last axis; the largest score is taken off, lest exp overflows."""
    exponentials = ops.exp(scores - scores.data.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def plain_causal_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S D"],
    mask: Float[Array, "#B T S"] | None = None,
    dropout_probability: float = 0.0,
    generator: np.random.Generator | None = None,
) -> Float[Tensor, "B H T D"]:
    """The formula, line by line; all T × S weights are in memory, and autograd keeps several such arrays."""
    B, H, T, D = q.shape
    K, S = k.shape[1:3]
    if mask is None:
        mask = causal_mask(T, S)
    groups = q.reshape(B, K, H // K, T, D)  # the H/K query heads that share a key-value head
    scores = groups @ k.reshape(B, K, 1, S, D).transpose(0, 1, 2, 4, 3) / math.sqrt(D)
    weights = softmax(scores + mask[:, None, None])
    weights = dropout(weights, dropout_probability, True, generator)
    return (weights @ v.reshape(B, K, 1, S, D)).reshape(B, H, T, D)


def causal_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S D"],
    mask: Float[Array, "#B T S"] | None = None,
    dropout_probability: float = 0.0,
    generator: np.random.Generator | None = None,
    tiles: list[list[Tile]] | None = None,
) -> Float[Tensor, "B H T D"]:
    """Attention of T queries, the last of S positions. `mask` is additive and causal; None is plain causal."""
    if dropout_probability > 0:
        return plain_causal_attention(q, k, v, mask, dropout_probability, generator)
    if tiles is None:
        tiles = plan_tiles(mask, q.shape[2], k.shape[2])
    return fused.attention(q, k, v, tiles)


class Gpt2Attention(Module):
    """GPT-2's attention: one matrix for q, k and v, biases, learned positions elsewhere."""

    def __init__(self, config: ModelConfig, layer_index: int) -> None:
        super().__init__()
        self.num_heads, self.layer_index = config.num_attention_heads, layer_index
        self.c_attn = Conv1D(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = Conv1D(config.hidden_size, config.hidden_size)
        self.attention_dropout, self.residual_dropout = config.attention_dropout, config.resid_pdrop

    def forward(
        self, x: Float[Tensor, "B T C"], shared: SharedInputs, read: Bool[Array, "B T"] | None = None
    ) -> Float[Tensor, "*rows C"]:
        """Mix information between positions; with `read`, what these found, as rows [N, C]."""
        parts = ops.split(self.c_attn(x), 3 * [x.shape[-1]], axis=-1)
        q, k, v = (_split_heads(part, self.num_heads) for part in parts)
        if shared.cache is not None:
            k, v = map(
                Tensor, shared.cache.update(self.layer_index, k.data, v.data)
            )  # no gradient flows back
        p = self.attention_dropout if self.training else 0.0
        y = self.c_proj(_attend(q, k, v, p, shared, read))
        return dropout(y, self.residual_dropout, self.training, shared.generator)


class LlamaAttention(Module):
    """Llama's attention: grouped key-value heads, rotary positions. q, k and v are one matrix product."""

    def __init__(self, config: ModelConfig, layer_index: int) -> None:
        super().__init__()
        C, D = config.hidden_size, config.head_dim
        self.num_heads, self.num_key_value_heads = config.num_attention_heads, config.num_key_value_heads
        self.layer_index = layer_index
        self.q_proj = Linear(C, self.num_heads * D, bias=config.attention_bias)
        self.k_proj = Linear(C, self.num_key_value_heads * D, bias=config.attention_bias)
        self.v_proj = Linear(C, self.num_key_value_heads * D, bias=config.attention_bias)
        self.o_proj = Linear(self.num_heads * D, C, bias=config.attention_bias)
        self.head_dim = D
        self.attention_dropout = config.attention_dropout

    def forward(
        self, x: Float[Tensor, "B T C"], shared: SharedInputs, read: Bool[Array, "B T"] | None = None
    ) -> Float[Tensor, "*rows C"]:
        """Mix information between positions; with `read`, what these found, as rows [N, C]."""
        H, K, D = self.num_heads, self.num_key_value_heads, self.head_dim
        qkv = fused_linear(x, [self.q_proj, self.k_proj, self.v_proj])
        q, k, v = ops.split(qkv, [H * D, K * D, K * D], axis=-1)
        q, k, v = _split_heads(q, H), _split_heads(k, K), _split_heads(v, K)
        assert shared.rotary is not None, "Llama's attention needs the rotary tables"
        q, k = apply_rotary(q, *shared.rotary), apply_rotary(k, *shared.rotary)
        if shared.cache is not None:
            k, v = map(
                Tensor, shared.cache.update(self.layer_index, k.data, v.data)
            )  # no gradient flows back
        p = self.attention_dropout if self.training else 0.0
        return self.o_proj(_attend(q, k, v, p, shared, read))


def _attend(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S D"],
    dropout_probability: float,
    shared: SharedInputs,
    read: Bool[Array, "B T"] | None = None,
) -> Float[Tensor, "*rows HD"]:
    """`causal_attention` with what all blocks share, the heads joined; with `read`, at these positions, as rows [N, HD]."""
    H, D = q.shape[1], q.shape[-1]
    if read is not None and dropout_probability == 0 and shared.tiles is not None:  # only these ask
        asked = q.transpose(0, 2, 1, 3)[read]
        q = asked.transpose(1, 0, 2).reshape(1, H, -1, D)
        y = fused.attention(q, k, v, read_tiles(shared.tiles, read))
        return y.transpose(0, 2, 1, 3).reshape(-1, H * D)
    y = causal_attention(q, k, v, shared.mask, dropout_probability, shared.generator, shared.tiles)
    rows = y.transpose(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], H * D)
    return rows if read is None else rows[read]


def _split_heads(x: Float[Tensor, "B T HD"], num_heads: int) -> Float[Tensor, "B H T D"]:
    """The last axis cut into heads, as a view."""
    return x.reshape(*x.shape[:2], num_heads, -1).transpose(0, 2, 1, 3)
