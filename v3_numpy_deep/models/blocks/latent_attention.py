"""Multi-head latent attention: keys and values are made from one narrow vector a token, and only that vector is cached.

    c = RMSNorm(W_dkv x)      k_h = [W_uk,h c ; R(W_kr x)]      v_h = W_uv,h c      q_h = [W_uq,h c_q ; R(W_qr,h c_q)]

DeepSeek-AI 2024 (DeepSeek-V2), section 2.1, and 2024 (DeepSeek-V3), section 2.1.1. R rotates by position: only a part of a key, and that
part is the same for all heads, since a rotation between W_uk and the query would not let the two be multiplied in advance:

    q · k  =  q_n · (W_uk c) + q_r · k_r  =  (W_ukᵀ q_n) · c + q_r · k_r          o  =  Σ p (W_uv c)  =  W_uv (Σ p c)

On the left, keys and values are expanded to H heads; on the right, absorbed: the latents themselves are the keys and the values of one
head that all queries share. Training expands; decoding absorbs, and never makes a key again.

Level 1: transformers' `DeepseekV3Attention`, which always expands. Level 2: the same over torch, with its theory page.

    uv run python -c "from v3_numpy_deep.models.blocks.latent_attention import *; print(absorbed_is_cheaper(1, 4096, (128, 64, 128, 512)))"
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from shared_data.model_files.config import ModelConfig
from shared_data.model_files.rope import attention_scale
from v3_numpy_deep.autograd import Array, Module, Tensor
from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.autograd.kernels import kernel
from v3_numpy_deep.models.blocks.attention import SharedInputs, causal_attention, join_heads, split_heads
from v3_numpy_deep.models.blocks.linear import Linear
from v3_numpy_deep.models.blocks.normalization import RMSNorm
from v3_numpy_deep.models.blocks.rope import apply_rotary
from v3_numpy_deep.models.blocks.sparse_indexer import Indexer

NORM_EPS = 1e-6  # of both norms; the library's default, whatever rms_norm_eps says


class Compressed(NamedTuple):
    """What latent attention makes of the hidden states: queries by head, and what the heads share."""

    q_plain: Float[Tensor, "B H T N"]  # the part of a query that is not rotated
    q_rotated: Float[Tensor, "B H T P"]
    latent: Float[Tensor, "B 1 S R"]  # c
    rotated_key: Float[Tensor, "B 1 S P"]


def expand(
    q_plain: Float[Tensor, "B H T N"],
    q_rotated: Float[Tensor, "B H T P"],
    keys_and_values: Float[Tensor, "B H S NV"],
    rotated_key: Float[Tensor, "B 1 S P"],
) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, H, T, D], k [B, H, S, D] and v [B, H, S, V] of ordinary attention, D = N + P, from the latents' [W_uk c ; W_uv c]."""
    N, P = q_plain.shape[-1], q_rotated.shape[-1]
    k_plain, v = ops.split(keys_and_values, [N, keys_and_values.shape[-1] - N])
    every_head = np.zeros(
        (1, q_plain.shape[1], 1, P), rotated_key.dtype
    )  # broadcasting copies; its derivative adds up
    k = ops.concatenate([k_plain, rotated_key + every_head], axis=-1)
    return ops.concatenate([q_plain, q_rotated], axis=-1), k, v


def absorb(
    q_plain: Float[Tensor, "B H T N"],
    q_rotated: Float[Tensor, "B H T P"],
    latent: Float[Tensor, "B 1 S R"],
    rotated_key: Float[Tensor, "B 1 S P"],
    key_up: Float[Tensor, "H N R"],
) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, H, T, D], k [B, 1, S, D] and v [B, 1, S, R] of multi-query attention over the latents, D = R + P; it gives latents too.

    Attention divides scores by √D, but these are the products of heads of size N + P: the queries make up for the difference.
    """
    q = ops.concatenate([q_plain @ key_up, q_rotated], axis=-1)
    k = ops.concatenate([latent, rotated_key], axis=-1)
    return q * math.sqrt(q.shape[-1] / (q_plain.shape[-1] + q_rotated.shape[-1])), k, latent


def up_project(y: Float[Tensor, "B H T R"], value_up: Float[Tensor, "H V R"]) -> Float[Tensor, "B H T V"]:
    """W_uv Σ p c, the values that the heads would have read."""
    return y @ value_up.transpose(0, 2, 1)


def absorbed_is_cheaper(T: int, S: int, sizes: tuple[int, int, int, int]) -> bool:
    """Whether T queries against S latents take fewer multiplications absorbed than expanded; sizes: N, P, V, R. For one head:

    expanded: S R (N + V) to make keys and values, T S (N + P + V) to use them; absorbed: T R (N + V) and T S (R + P + R).
    """
    N, P, V, R = sizes
    return T * R * (N + V) + T * S * (2 * R + P) < S * R * (N + V) + T * S * (N + P + V)


class LatentAttention(Module):
    """DeepSeek's attention. In layers of the type indexed_attention (DeepSeek-V3.2) it reads only what an indexer selects."""

    kernels = "fused"

    def __init__(self, config: ModelConfig, layer_index: int) -> None:
        super().__init__()
        C, H, bias = config.hidden_size, config.num_attention_heads, config.attention_bias
        self.num_heads, self.layer_index, self.attention_dropout = H, layer_index, config.attention_dropout
        N, P, V, R = self.sizes = (
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.v_head_dim,
            config.kv_lora_rank,
        )
        rank, self.scale = config.q_lora_rank, attention_scale(config)
        self.compresses_queries = rank is not None
        if rank is None:
            self.q_proj = Linear(C, H * (N + P), bias=False)
        else:
            self.q_a_proj, self.q_a_layernorm = Linear(C, rank, bias), RMSNorm(rank, NORM_EPS)
            self.q_b_proj = Linear(rank, H * (N + P), bias=False)
        self.kv_a_proj_with_mqa, self.kv_a_layernorm = Linear(C, R + P, bias), RMSNorm(R, NORM_EPS)
        self.kv_b_proj = Linear(R, H * (N + V), bias=False)
        self.o_proj = Linear(H * V, C, bias)
        is_indexed = config.layer_types[layer_index] == "indexed_attention"
        self.indexer = Indexer(config) if is_indexed else None

    def query_input(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T I"]:
        """What queries are made from: the normalized query latent or, where there is none, x."""
        return self.q_a_layernorm(self.q_a_proj(x)) if self.compresses_queries else x

    def compress(
        self, x: Float[Tensor, "B T C"], query_input: Float[Tensor, "B T I"], shared: SharedInputs
    ) -> Compressed:
        """Queries, latents and rotated keys of these positions."""
        assert shared.rotary is not None, "latent attention needs the rotary tables"
        N, P, _, R = self.sizes
        q = self.q_b_proj(query_input) if self.compresses_queries else self.q_proj(query_input)
        if self.scale != 1:
            q = q * self.scale
        q_plain, q_rotated = ops.split(split_heads(q, self.num_heads), [N, P])
        latent, key = ops.split(split_heads(self.kv_a_proj_with_mqa(x), 1), [R, P])
        rotate = kernel(self.kernels, apply_rotary)
        q_rotated, key = (rotate(_halves(part), *shared.rotary) for part in (q_rotated, key))
        return Compressed(q_plain, q_rotated, self.kv_a_layernorm(latent), key)

    def expanded(self, parts: Compressed) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys [B, H, T or S, N + P], values [B, H, S, V]."""
        keys_and_values = split_heads(self.kv_b_proj(parts.latent[:, 0]), self.num_heads)
        return expand(parts.q_plain, parts.q_rotated, keys_and_values, parts.rotated_key)

    def project(self, x: Float[Tensor, "B T C"], shared: SharedInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of these positions, expanded."""
        return self.expanded(self.compress(x, self.query_input(x), shared))

    def forward(
        self, x: Float[Tensor, "B T C"], shared: SharedInputs, keep: Bool[Array, "B T"] | None = None
    ) -> Float[Tensor, "*rows C"]:
        """Mix information between positions. With `keep`, the result at these positions only, as rows [N, C]."""
        query_input = self.query_input(x)
        parts = self.compress(x, query_input, shared)
        index = self.indexer and self.indexer(x, query_input, shared)
        if shared.cache is not None:  # no gradient flows back
            states = [
                parts.latent.data,
                parts.rotated_key.data,
                *([index.keys.data[:, None]] if index else []),
            ]
            latent, key, *index_keys = map(Tensor, shared.cache.update(self.layer_index, *states))
            parts = parts._replace(latent=latent, rotated_key=key)
            index = index and index._replace(keys=index_keys[0][:, 0])
        absorbed = self._absorbs(shared)
        q, k, v = absorb(*parts, self._up_projections()[0]) if absorbed else self.expanded(parts)
        p = self.attention_dropout if self.training else 0.0
        if self.indexer and index:
            y = self.indexer.attend(q, k, v, index, shared, keep, p)
        else:
            mask = shared.mask if keep is None else shared.mask.only(keep)
            y = kernel(self.kernels, causal_attention)(q, k, v, mask, p, shared.generator)
        y = up_project(y, self._up_projections()[1]) if absorbed else y
        return self.o_proj(join_heads(y, keep))

    def _absorbs(self, shared: SharedInputs) -> bool:
        """Where a selection is gathered, one shared head is gathered once; else, in decoding, what costs less. Adapters expand."""
        T, S, is_plain = shared.mask.T, shared.mask.S, isinstance(self.kv_b_proj, Linear)
        selects = self.indexer is not None and self.indexer.selects(S, shared)
        decodes = shared.cache is not None and absorbed_is_cheaper(T, S, self.sizes)
        return is_plain and (selects or decodes)

    def _up_projections(self) -> tuple[Tensor, Tensor]:
        """W_uk [H, N, R] and W_uv [H, V, R] of each head: the rows of `kv_b_proj`."""
        N, _, V, R = self.sizes
        by_head = self.kv_b_proj.weight.reshape(self.num_heads, N + V, R)
        return by_head[:, :N], by_head[:, N:]


def _halves(x: Float[Tensor, "B H T P"]) -> Float[Tensor, "B H T P"]:
    """DeepSeek's checkpoints have the pairs of a rotation side by side; here, as everywhere, they stand half a head apart."""
    return ops.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)
