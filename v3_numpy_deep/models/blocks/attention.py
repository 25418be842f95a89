"""Causal self-attention: softmax(q kᵀ / √D + mask) v, for multi-head, grouped-query and multi-query models.

Vaswani et al. 2017, section 3.2; MQA: Shazeer 2019; GQA: Ainslie et al. 2023. H query heads share K key-value heads: K = H
is MHA, K = 1 is MQA. `attention_weights` and `causal_attention` are the formula, over primitive operations and with the engine's
derivative. The fused version works in tiles and has a derivative of its own (autograd/fused/attention.py).

Level 1: transformers' `GPT2Attention` and `LlamaAttention`. Level 2: the same over torch.

    uv run python -c "import numpy as np; from v3_numpy_deep.models.blocks.attention import *; q = Tensor(np.ones((1, 4, 8, 16), 'f')); print(causal_attention(q, q, q).shape)"
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from shared_data.model_files.config import ModelConfig
from shared_data.model_files.rope import attention_scale
from v3_numpy_deep.autograd import Array, Module, Parameter, Tensor
from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.autograd.kernels import kernel
from v3_numpy_deep.models.blocks.attention_mask import AttentionMask
from v3_numpy_deep.models.blocks.dropout import dropout
from v3_numpy_deep.models.blocks.linear import Conv1D, Linear, merged_linear
from v3_numpy_deep.models.blocks.normalization import RMSNorm
from v3_numpy_deep.models.blocks.rope import apply_rotary


@runtime_checkable
class Cache(Protocol):
    """What attention needs of a key-value cache (inference/kv_cache.py)."""

    length: int

    def update(self, layer_index: int, *new: Array) -> tuple[Array, ...]:
        """Append the new keys and values [B, K, T, D]; return those of all positions so far [B, K, S, D]."""


@dataclass
class SharedInputs:
    """What all blocks of one forward pass share."""

    mask: AttentionMask
    rotary: tuple[Float[Array, "#B T half"], Float[Array, "#B T half"]] | None = None  # cos and sin (llama)
    cache: Cache | None = None
    generator: np.random.Generator | None = None  # draws the dropout masks
    logits_to_keep: Bool[Array, "B T"] | None = None  # the last block's output only here, as rows [N, C]
    indexer_losses: list[Tensor] | None = None  # in training, each layer with an indexer appends its loss
    dense_indexer: bool = False  # its warm-up: attention to all keys, and it learns to rank these
    routings: list[Any] | None = None  # where a list, each mixture of experts adds its `Routing`


# In shapes, heads=H where H would do: the shape checker of the tests knows `Float[Tensor, "H"] | None` by its text, and would take it
# for the torch tensor of level 2.
def attention_weights(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    mask: AttentionMask | None = None,
    sinks: Float[Tensor, "heads=H"] | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "B K G T S"]:
    """softmax(q kᵀ / √D + mask): how much each query reads from each position; G = H/K query heads share a key-value head.

    sinks: one more logit for each head, whose weight is dropped, so that a head may read nothing (gpt-oss, OpenAI 2025).
    softcap: scores s become c tanh(s/c), which is never beyond ±c (Gemma 2, 2024).
    """
    B, H, T, D = q.shape
    K, S = k.shape[1:3]
    mask = mask or AttentionMask(T, S)
    groups = q.reshape(B, K, H // K, T, D)
    scores = groups @ k.reshape(B, K, 1, S, D).transpose(0, 1, 2, 4, 3) / math.sqrt(D)
    if softcap is not None:
        scores = softcap * ops.tanh(scores / softcap)
    scores = scores + mask.additive(scores.dtype)[:, None, None]
    if sinks is None:
        return ops.softmax(scores)
    sink_scores = sinks.reshape(K, H // K, 1, 1) + np.zeros((B, K, H // K, T, 1), scores.dtype)
    return ops.softmax(ops.concatenate([scores, sink_scores], axis=-1))[..., :-1]


def causal_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S Dv"],
    mask: AttentionMask | None = None,
    dropout_p: float = 0.0,
    generator: np.random.Generator | None = None,
    sinks: Float[Tensor, "heads=H"] | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "B H T Dv"]:
    """Attention of T queries, the last of S positions: softmax(q kᵀ / √D + mask) v. Without a mask, plain causal."""
    B, K, S, Dv = v.shape
    weights = dropout(attention_weights(q, k, mask, sinks, softcap), dropout_p, True, generator)
    return (weights @ v.reshape(B, K, 1, S, Dv)).reshape(*q.shape[:3], Dv)


class Gpt2Attention(Module):
    """GPT-2's attention: one matrix for q, k and v, biases, learned positions elsewhere."""

    kernels = "fused"

    def __init__(self, config: ModelConfig, layer_index: int) -> None:
        super().__init__()
        self.num_heads, self.layer_index = config.num_attention_heads, layer_index
        self.c_attn = Conv1D(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = Conv1D(config.hidden_size, config.hidden_size)
        self.attention_dropout, self.residual_dropout = config.attention_dropout, config.resid_pdrop

    def project(self, x: Float[Tensor, "B T C"], shared: SharedInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, H, T, D] of these positions."""
        q, k, v = (split_heads(part, self.num_heads) for part in ops.split(self.c_attn(x), 3 * [x.shape[-1]]))
        return q, k, v

    def forward(
        self, x: Float[Tensor, "B T C"], shared: SharedInputs, keep: Bool[Array, "B T"] | None = None
    ) -> Float[Tensor, "*rows C"]:
        """Mix information between positions. With `keep`, the result at these positions only, as rows [N, C]."""
        q, k, v = self.project(x, shared)
        if shared.cache is not None:  # no gradient flows back
            k, v = map(Tensor, shared.cache.update(self.layer_index, k.data, v.data))
        mask = shared.mask if keep is None else shared.mask.only(keep)
        p = self.attention_dropout if self.training else 0.0
        y = kernel(self.kernels, causal_attention)(q, k, v, mask, p, shared.generator)
        y = self.c_proj(join_heads(y, keep))
        return dropout(y, self.residual_dropout, self.training, shared.generator)


class LlamaAttention(Module):
    """Llama's attention, and that of its relatives: grouped key-value heads, rotary positions. q, k and v are one matrix product.

    Qwen3 normalizes each query and key head (`qk_norm`, Dehghani et al. 2023, section 2.1); some layers of SmolLM3 rotate nothing; Gemma 2
    caps its scores and may scale them by another size than D; gpt-oss learns a sink for each head.
    """

    kernels = "fused"

    def __init__(self, config: ModelConfig, layer_index: int) -> None:
        super().__init__()
        C, D, bias = config.hidden_size, config.head_dim, config.attention_bias
        H, K = self.num_heads, self.num_key_value_heads = (
            config.num_attention_heads,
            config.num_key_value_heads,
        )
        self.q_proj, self.k_proj, self.v_proj = (Linear(C, heads * D, bias) for heads in (H, K, K))
        self.o_proj = Linear(H * D, C, bias and config.attention_output_bias)
        self.sinks = Parameter(np.zeros(H, np.float32)) if config.attention_sinks else None
        self.q_norm, self.k_norm = (
            RMSNorm(D, config.rms_norm_eps) if config.qk_norm else None for _ in range(2)
        )
        self.has_rope = config.has_rope(layer_index)
        self.pattern = config.pattern(layer_index)
        self.head_dim, self.layer_index, self.attention_dropout = D, layer_index, config.attention_dropout
        self.softcap, self.scale = config.attn_logit_softcapping, attention_scale(config)

    def project(self, x: Float[Tensor, "B T C"], shared: SharedInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, D], keys and values [B, K, T, D] of these positions; queries and keys are normalized and rotated."""
        H, K, D = self.num_heads, self.num_key_value_heads, self.head_dim
        qkv = kernel(self.kernels, merged_linear)(x, [self.q_proj, self.k_proj, self.v_proj])
        q, k, v = (split_heads(part, part.shape[-1] // D) for part in ops.split(qkv, [H * D, K * D, K * D]))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.scale != 1:
            q = q * self.scale
        if not self.has_rope:
            return q, k, v
        assert shared.rotary is not None, "Llama's attention needs the rotary tables"
        rotate = kernel(self.kernels, apply_rotary)
        return rotate(q, *shared.rotary), rotate(k, *shared.rotary), v

    def forward(
        self, x: Float[Tensor, "B T C"], shared: SharedInputs, keep: Bool[Array, "B T"] | None = None
    ) -> Float[Tensor, "*rows C"]:
        """Mix information between positions. With `keep`, the result at these positions only, as rows [N, C]."""
        q, k, v = self.project(x, shared)
        if shared.cache is not None:  # no gradient flows back
            k, v = map(Tensor, shared.cache.update(self.layer_index, k.data, v.data))
        mask = shared.mask.of(self.pattern)
        mask = mask if keep is None else mask.only(keep)
        p = self.attention_dropout if self.training else 0.0
        attend = kernel(self.kernels, causal_attention)
        y = attend(q, k, v, mask, p, shared.generator, self.sinks, self.softcap)
        return self.o_proj(join_heads(y, keep))


def split_heads(x: Float[Tensor, "B T HD"], num_heads: int) -> Float[Tensor, "B H T D"]:
    """The last axis cut into heads, as a view."""
    return x.reshape(*x.shape[:2], num_heads, -1).transpose(0, 2, 1, 3)


def join_heads(
    x: Float[Tensor, "B H T D"], keep: Bool[Array, "B T"] | None = None
) -> Float[Tensor, "*rows HD"]:
    """The inverse of `split_heads`; with `keep`, of these positions only, as rows [N, HD]."""
    B, H, T, D = x.shape
    rows = x.transpose(0, 2, 1, 3).reshape(B, T, H * D)
    return rows if keep is None else rows[keep]
