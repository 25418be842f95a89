"""DeepSeek sparse attention: a small indexer ranks the earlier tokens, and attention reads only the best of them.

    I[t, s] = Σ_h w[t, h] · relu(q[t, h] · k[s]) / (√D √H)        selected(t) = the index_topk keys with the largest I[t, s]

DeepSeek-AI 2025 (DeepSeek-V3.2), section 2.1, equations 1 and 2. The indexer has H small heads and one key a token. Its scores take T²
products, but cheap ones, and are made for some queries at a time and dropped: memory stays linear. Attention then costs T · index_topk.
Choosing has no derivative, so the indexer learns from a loss of its own (equations 3 and 4): it should rank as attention does. What attends to
the selected keys is selected_attention.py.

Level 1: transformers' `DeepseekV32Indexer`, which runs without gradients. Level 2: the same over torch.

    uv run python -c "import numpy as np; from v3_numpy_deep.models.blocks.sparse_indexer import *; print(select_keys(np.random.rand(1, 4, 4), np.tri(4, dtype=bool)[None], 2))"
"""

import contextlib
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from shared_data.model_files.config import ModelConfig
from v3_numpy_deep.autograd import Array, Module, Tensor, no_grad
from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.autograd.kernels import kernel
from v3_numpy_deep.models.blocks.attention import (
    LlamaAttention,
    SharedInputs,
    attention_weights,
    causal_attention,
    join_heads,
)
from v3_numpy_deep.models.blocks.attention_mask import MASKED, AttentionMask
from v3_numpy_deep.models.blocks.linear import Linear
from v3_numpy_deep.models.blocks.normalization import LayerNorm
from v3_numpy_deep.models.blocks.rope import apply_rotary
from v3_numpy_deep.models.blocks.selected_attention import selected_attention, selection_mask

SCORES_AT_ONCE = 2**20  # products of queries and keys, all heads counted


class IndexInputs(NamedTuple):
    """What an indexer compares."""

    queries: Float[Tensor, "B T H D"]
    keys: Float[Tensor, "B S D"]
    weights: Float[Tensor, "B T H"]  # how much each head counts; may be negative


def index_scores(
    queries: Float[Tensor, "B T H D"], keys: Float[Tensor, "B S D"], weights: Float[Tensor, "B T H"]
) -> Float[Tensor, "B T S"]:
    """Σ_h w_h relu(q_h · k) / (√D √H)"""
    B, T, H, D = queries.shape
    products = queries.reshape(B, T * H, D) @ keys.transpose(0, 2, 1)
    matches = ops.maximum(products / math.sqrt(D), 0.0).reshape(B, T, H, keys.shape[1])
    return ((weights / math.sqrt(H)).reshape(B, T, 1, H) @ matches).reshape(B, T, keys.shape[1])


def select_keys(
    scores: Float[Array, "B T S"], allowed: Bool[Array, "#B T S"], index_topk: int
) -> Int[Array, "B T k"]:
    """The keys with the largest scores among those that a query may see, k = min(index_topk, S); -1 where it sees fewer.

    Of equal scores the earlier key is taken. (Level 2 leaves that to torch, whose choice differs.) Exact ties are scores of 0, where no head
    matches.
    """
    masked = np.where(allowed, scores, -np.inf)
    order = np.argsort(-masked, axis=-1, kind="stable")[..., :index_topk]
    return np.where(np.take_along_axis(masked, order, axis=-1) == -np.inf, -1, order)


@no_grad()
def selected_keys(index: IndexInputs, mask: AttentionMask, index_topk: int) -> Int[Array, "B T k"]:
    """`select_keys` of all queries, some at a time: of the T · S scores, few exist at once."""
    (B, T, H, _), S = index.queries.shape, mask.S
    selected = np.full((B, T, min(index_topk, S)), -1)
    rows = max(1, SCORES_AT_ONCE // (B * H * S))
    for start in range(0, T, rows):
        part, end = slice(start, start + rows), min(S - T + start + rows, S)  # later keys are in the future
        scores = index_scores(index.queries[:, part], index.keys[:, :end], index.weights[:, part]).data
        found = select_keys(scores, mask.allowed(part)[..., :end], index_topk)
        selected[:, part, : found.shape[-1]] = found
    return selected


def indexer_loss(
    scores: Float[Tensor, "B T S"],
    target: Float[Tensor, "B T S"],
    selected: Int[Array, "B T k"] | None,
    mask: AttentionMask,
) -> Float[Tensor, ""]:
    """Mean over queries of KL(target ‖ softmax(scores)), nats, over all visible keys or, with `selected`, over these alone.

    target: attention weights, summed over heads; normalized here over the same keys, and a constant.
    """
    mask = mask if selected is None else selection_mask(selected, mask.S)
    allowed = np.broadcast_to(mask.allowed(), scores.shape)
    smallest = np.finfo(target.dtype).tiny
    wanted = target.data * allowed
    wanted = wanted / np.maximum(wanted.sum(-1, keepdims=True), smallest)
    log_index = ops.log_softmax(ops.where(allowed, scores, MASKED))
    divergence = (wanted * (np.log(np.maximum(wanted, smallest)) - log_index)).sum()
    return divergence / max(1, int(allowed.any(-1).sum()))


def attention_kl(
    queries: Float[Tensor, "B T Hi Di"],
    keys: Float[Tensor, "B S Di"],
    weights: Float[Tensor, "B T Hi"],
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    selected: Int[Array, "B T k"] | None,
    mask: AttentionMask,
) -> Float[Tensor, ""]:
    """`indexer_loss` of an attention layer: the target is what its heads, whose queries q and keys k are constants, read together."""
    seen = mask if selected is None else selection_mask(selected, mask.S)
    target = attention_weights(q.detach(), k.detach(), seen).sum((1, 2))
    return indexer_loss(index_scores(queries, keys, weights), target, selected, mask)


class Indexer(Module):
    """The lightning indexer: queries from what the attention makes its own of, one key and H weights from the hidden state."""

    kernels = "fused"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C, H, D = config.hidden_size, config.index_n_heads, config.index_head_dim
        self.wq_b, self.wk = Linear(config.q_lora_rank or C, H * D, bias=False), Linear(C, D, bias=False)
        self.k_norm, self.weights_proj = LayerNorm(D, 1e-6), Linear(C, H, bias=False)
        self.num_heads, self.rotary_dim, self.index_topk = H, config.head_dim, config.index_topk

    def forward(
        self, x: Float[Tensor, "B T C"], query_input: Float[Tensor, "B T I"], shared: SharedInputs
    ) -> IndexInputs:
        """Queries, keys and weights of these positions. Constants, unless the indexer is trained; its inputs always are."""
        with no_grad() if shared.indexer_losses is None else contextlib.nullcontext():
            x, query_input = x.detach(), query_input.detach()
            B, T, _ = x.shape
            queries = self.wq_b(query_input).reshape(B, T, self.num_heads, -1)
            keys = self.k_norm(self.wk(x)).reshape(B, T, 1, -1)
            queries, keys = self._rotate(queries, shared), self._rotate(keys, shared)
            return IndexInputs(queries, keys.reshape(B, T, -1), self.weights_proj(x))

    def _rotate(self, x: Float[Tensor, "B T H D"], shared: SharedInputs) -> Float[Tensor, "B T H D"]:
        """Turn the first dimensions of each head, as many as the attention turns; the others stay."""
        assert shared.rotary is not None, "an indexer needs the rotary tables"
        turned, still = ops.split(x, [self.rotary_dim, x.shape[-1] - self.rotary_dim])
        turned = kernel(self.kernels, apply_rotary)(turned.transpose(0, 2, 1, 3), *shared.rotary)
        return ops.concatenate([turned.transpose(0, 2, 1, 3), still], axis=-1)

    def selects(self, S: int, shared: SharedInputs) -> bool:
        """Whether there are more keys than it may select."""
        return self.index_topk < S and not shared.dense_indexer

    def attend(
        self,
        q: Float[Tensor, "B H T D"],
        k: Float[Tensor, "B K S D"],
        v: Float[Tensor, "B K S Dv"],
        index: IndexInputs,
        shared: SharedInputs,
        keep: Bool[Array, "B T"] | None,
        dropout_p: float,
    ) -> Float[Tensor, "B H T Dv"]:
        """Attention to the keys that `index` ranks highest; in training, how well it ranks goes to `shared.indexer_losses`."""
        mask, selected = shared.mask, None
        if self.selects(mask.S, shared):
            selected = selected_keys(index, mask, self.index_topk)
        if shared.indexer_losses is not None:
            learn = kernel(self.kernels, attention_kl)
            shared.indexer_losses.append(learn(*index, q.detach(), k.detach(), selected, mask))
        mask = mask if keep is None else mask.only(keep)
        if selected is None:
            return kernel(self.kernels, causal_attention)(q, k, v, mask, dropout_p, shared.generator)
        attend = kernel(self.kernels, selected_attention)
        return attend(q, k, v, selected, mask, dropout_p, shared.generator)


class IndexedAttention(LlamaAttention):
    """Llama's attention with an indexer: our own `sparse_llama`."""

    def __init__(self, config: ModelConfig, layer_index: int) -> None:
        super().__init__(config, layer_index)
        self.indexer = Indexer(config)

    def forward(
        self, x: Float[Tensor, "B T C"], shared: SharedInputs, keep: Bool[Array, "B T"] | None = None
    ) -> Float[Tensor, "*rows C"]:
        """Mix information between positions. With `keep`, the result at these positions only, as rows [N, C]."""
        q, k, v = self.project(x, shared)
        index = self.indexer(x, x, shared)
        if shared.cache is not None:  # no gradient flows back
            states = k.data, v.data, index.keys.data[:, None]
            k, v, keys = map(Tensor, shared.cache.update(self.layer_index, *states))
            index = index._replace(keys=keys[:, 0])
        p = self.attention_dropout if self.training else 0.0
        return self.o_proj(join_heads(self.indexer.attend(q, k, v, index, shared, keep, p), keep))
