"""DeepSeek sparse attention: a small indexer ranks the earlier tokens, and attention reads only the best of them.

    I[t, s] = Σ_h w[t, h] · relu(q[t, h] · k[s]) / (√D √H)        selected(t) = the index_topk keys with the largest I[t, s]

DeepSeek-AI 2025 (DeepSeek-V3.2), section 2.1, equations 1 and 2. The indexer has H small heads and one key a token. Its scores take T²
products, but cheap ones, and are made for some queries at a time and dropped: memory stays linear. Attention then costs T · index_topk.
Choosing has no derivative, so the indexer learns from a loss of its own (equations 3 and 4): it should rank as attention does. What attends to
the selected keys is selected_attention.py. Theory: sparse_indexer.md.

Level 1: transformers' `DeepseekV32Indexer`, which runs without gradients. Level 3: the same over its own autograd.

    uv run python -c "import torch; from v2_handwritten.models.blocks.sparse_indexer import *; print(select_keys(torch.rand(1, 4, 4), torch.ones(1, 4, 4).tril().bool(), 2))"
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from shared_data.model_files.config import ModelConfig
from v2_handwritten.kernels import kernel
from v2_handwritten.models.blocks.attention import (
    LlamaAttention,
    SharedInputs,
    attention_weights,
    causal_attention,
    join_heads,
)
from v2_handwritten.models.blocks.attention_mask import MASKED, AttentionMask
from v2_handwritten.models.blocks.linear import Linear
from v2_handwritten.models.blocks.normalization import LayerNorm
from v2_handwritten.models.blocks.rope import apply_rotary
from v2_handwritten.models.blocks.selected_attention import selected_attention, selection_mask

SCORES_AT_ONCE = 2**22  # products of queries and keys, all heads counted


class IndexInputs(NamedTuple):
    """What an indexer compares."""

    queries: Float[Tensor, "B T H D"]
    keys: Float[Tensor, "B S D"]
    weights: Float[Tensor, "B T H"]  # how much each head counts; may be negative


def index_scores(
    queries: Float[Tensor, "B T H D"], keys: Float[Tensor, "B S D"], weights: Float[Tensor, "B T H"]
) -> Float[Tensor, "B T S"]:
    """Σ_h w_h relu(q_h · k) / (√D √H), in float32 at least."""
    (B, T, H, D), wide = queries.shape, torch.promote_types(queries.dtype, torch.float32)
    products = queries.to(wide).flatten(1, 2) @ keys.to(wide).transpose(1, 2)
    matches = torch.relu(products / math.sqrt(D)).view(B, T, H, -1)
    return ((weights.to(wide) / math.sqrt(H)).unsqueeze(2) @ matches).squeeze(2)


def select_keys(
    scores: Float[Tensor, "B T S"], allowed: Bool[Tensor, "#B T S"], index_topk: int
) -> Int[Tensor, "B T k"]:
    """The keys with the largest scores among those that a query may see, k = min(index_topk, S); -1 where it sees fewer.

    Of equal scores torch's `topk` takes whichever it meets first, as in the library. Exact ties are scores of 0, where no head matches.
    """
    masked = scores.masked_fill(~allowed, -math.inf)
    best = masked.topk(min(index_topk, scores.shape[-1]), dim=-1)
    return best.indices.masked_fill(best.values == -math.inf, -1)


@torch.no_grad()
def selected_keys(index: IndexInputs, mask: AttentionMask, index_topk: int) -> Int[Tensor, "B T k"]:
    """`select_keys` of all queries, some at a time: of the T · S scores, few exist at once."""
    (B, T, H, _), S = index.queries.shape, mask.S
    k, past = min(index_topk, S), mask.S - mask.T
    rows = max(1, SCORES_AT_ONCE // (B * H * S))
    selected = torch.full((B, T, k), -1, device=index.queries.device)
    for start in range(0, T, rows):
        part, end = slice(start, start + rows), min(past + start + rows, S)  # later keys are in the future
        scores = index_scores(index.queries[:, part], index.keys[:, :end], index.weights[:, part])
        selected[:, part, : min(k, end)] = select_keys(scores, mask.allowed(part)[..., :end], k)
    return selected


def indexer_loss(
    scores: Float[Tensor, "B T S"],
    target: Float[Tensor, "B T S"],
    selected: Int[Tensor, "B T k"] | None,
    mask: AttentionMask,
) -> Float[Tensor, ""]:
    """Mean over queries of KL(target ‖ softmax(scores)), nats, over all visible keys or, with `selected`, over these alone.

    target: attention weights, summed over heads; normalized here over the same keys, and a constant.
    """
    mask = mask if selected is None else selection_mask(selected, mask.S)
    allowed = mask.allowed().expand(scores.shape)
    smallest = torch.finfo(target.dtype).tiny
    target = target.detach() * allowed
    target = target / target.sum(-1, keepdim=True).clamp(min=smallest)
    masked = scores.masked_fill(~allowed, MASKED)
    log_index = masked - masked.logsumexp(-1, keepdim=True)
    divergence = (target * (target.clamp(min=smallest).log() - log_index)).sum()
    return divergence / allowed.any(-1).sum().clamp(min=1)


def attention_kl(
    queries: Float[Tensor, "B T Hi Di"],
    keys: Float[Tensor, "B S Di"],
    weights: Float[Tensor, "B T Hi"],
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    selected: Int[Tensor, "B T k"] | None,
    mask: AttentionMask,
) -> Float[Tensor, ""]:
    """`indexer_loss` of an attention layer: the target is what its heads, whose queries q and keys k are constants, read together."""
    seen = mask if selected is None else selection_mask(selected, mask.S)
    target = attention_weights(q.detach(), k.detach(), seen).sum((1, 2))
    return indexer_loss(index_scores(queries, keys, weights), target, selected, mask)


class Indexer(nn.Module):
    """The lightning indexer: queries from what the attention makes its own of, one key and H weights from the hidden state."""

    kernels = "fused"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C, D = config.hidden_size, config.index_head_dim
        self.num_heads, self.head_dim, self.rotary_dim = config.index_n_heads, D, config.head_dim
        self.index_topk = config.index_topk
        self.wq_b = Linear(config.q_lora_rank or C, self.num_heads * D, bias=False)
        self.wk = Linear(C, D, bias=False)
        self.k_norm = LayerNorm(D, 1e-6)
        self.weights_proj = Linear(C, self.num_heads, bias=False)

    def forward(
        self, x: Float[Tensor, "B T C"], query_input: Float[Tensor, "B T I"], shared: SharedInputs
    ) -> IndexInputs:
        """Queries, keys and weights of these positions. Constants, unless the indexer is trained; its inputs always are."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and shared.indexer_losses is not None):
            x, query_input = x.detach(), query_input.detach()
            queries = self.wq_b(query_input).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            keys = self.k_norm(self.wk(x)).unsqueeze(1)
            queries, keys = self._rotate(queries, shared), self._rotate(keys, shared)
            return IndexInputs(queries.transpose(1, 2), keys.squeeze(1), self.weights_proj(x))

    def _rotate(self, x: Float[Tensor, "B H T D"], shared: SharedInputs) -> Float[Tensor, "B H T D"]:
        """Turn the first dimensions of each head, as many as the attention turns; the others stay."""
        assert shared.rotary is not None, "an indexer needs the rotary tables"
        turned, still = x.split([self.rotary_dim, self.head_dim - self.rotary_dim], dim=-1)
        return torch.cat([kernel(self.kernels, apply_rotary)(turned, *shared.rotary), still], dim=-1)

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
        keep: Bool[Tensor, "B T"] | None,
        dropout_p: float,
    ) -> Float[Tensor, "B H T Dv"]:
        """Attention to the keys that `index` ranks highest; in training, how well it ranks goes to `shared.indexer_losses`."""
        mask = shared.mask
        selected = selected_keys(index, mask, self.index_topk) if self.selects(mask.S, shared) else None
        if shared.indexer_losses is not None:
            loss = kernel(self.kernels, attention_kl)(*index, q.detach(), k.detach(), selected, mask)
            shared.indexer_losses.append(loss)
        mask = mask if keep is None else mask.only(keep)
        if selected is None:
            return kernel(self.kernels, causal_attention)(q, k, v, mask, dropout_p, shared.generator)
        return kernel(self.kernels, selected_attention)(q, k, v, selected, mask, dropout_p, shared.generator)


class IndexedAttention(LlamaAttention):
    """Llama's attention with an indexer: our own `sparse_llama`."""

    def __init__(self, config: ModelConfig, layer_index: int) -> None:
        super().__init__(config, layer_index)
        self.indexer = Indexer(config)

    def forward(
        self, x: Float[Tensor, "B T C"], shared: SharedInputs, keep: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "*rows C"]:
        """Mix information between positions. With `keep`, the result at these positions only, as rows [N, C]."""
        q, k, v = self.project(x, shared)
        index = self.indexer(x, x, shared)
        if shared.cache is not None:
            k, v, keys = shared.cache.update(self.layer_index, k, v, index.keys.unsqueeze(1))
            index = index._replace(keys=keys.squeeze(1))
        p = self.attention_dropout if self.training else 0.0
        return self.o_proj(join_heads(self.indexer.attend(q, k, v, index, shared, keep, p), keep))
