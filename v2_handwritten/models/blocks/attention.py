"""Causal self-attention: softmax(q kᵀ / √D + mask) v, for multi-head, grouped-query and multi-query models.

Vaswani et al. 2017, section 3.2; MQA: Shazeer 2019; GQA: Ainslie et al. 2023. H query heads share K key-value heads: K = H
is MHA, K = 1 is MQA. Three kernels compute the same: `plain_causal_attention` from torch's operations; the fused one, in
tiles of queries that never look at the keys after them, nor at those of other documents (the idea of FlashAttention, Dao et
al. 2022, with the derivative derived in attention.md); and torch's own, for a GPU.

Level 1: transformers' `GPT2Attention` and `LlamaAttention`. Level 3: the same over `autograd.fused`.

    python -c "import torch; from v2_handwritten.models.blocks.attention import *; q = torch.randn(1, 4, 8, 16); print(causal_attention(q, q, q).shape)"
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from shared_data.model_files.config import ModelConfig
from v2_handwritten.models.blocks.dropout import dropout
from v2_handwritten.models.blocks.linear import Conv1D, Linear, fused_linear
from v2_handwritten.models.blocks.rope import apply_rotary

# Added to a score that must not count; finite, so that a row without any key stays free of NaN.
MASKED = -1e30
_QUERY_TILE = 128  # queries in a tile of the fused kernel
_KEEP_WEIGHTS = 2**26  # a layer with more attention weights computes them again in the backward pass
_LOG2_E = math.log2(math.e)


@runtime_checkable
class Cache(Protocol):
    """What attention needs of a key-value cache (inference/kv_cache.py)."""

    length: int

    def update(self, layer_index: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new keys and values [B, K, T, D]; return those of all positions so far [B, K, S, D]."""


@dataclass(frozen=True)
class _Tile:
    """Some queries, and the window of keys that they can see, in one row of the batch or in all."""

    rows: slice  # of k and v
    query_rows: slice  # of q: the same ones, unless q is of the read positions alone
    queries: slice
    keys: slice
    mask: Float[Tensor, "#B t n"]  # additive, for the last n keys of the window; nothing hides those before

    @property
    def length(self) -> int:
        """Number of queries."""
        return self.queries.stop - self.queries.start


@dataclass
class SharedInputs:
    """What all blocks of one forward pass share."""

    mask: Float[Tensor, "#B T S"] | None = None  # None is plain causal
    rotary: tuple[Float[Tensor, "#B T half"], Float[Tensor, "#B T half"]] | None = None  # cos and sin (llama)
    cache: Cache | None = None
    generator: torch.Generator | None = None  # draws the dropout masks
    kernel: Literal["handwritten", "library"] = "handwritten"
    document_ids: Int[Tensor, "B T"] | None = (
        None  # packed documents; the mask is then made from them if needed
    )
    branch_ids: Int[Tensor, "B T"] | None = None  # continuations of one beginning, within a document
    tiles: list[_Tile] | None = None  # what the fused kernel visits
    read: Bool[Tensor, "B T"] | None = None  # the last block's output at these positions only, as rows [N, C]


def causal_mask(
    T: int, S: int, dtype: torch.dtype = torch.float32, device: Any = "cpu"
) -> Float[Tensor, "1 T S"]:
    """0 where query t may see key s, `MASKED` elsewhere; the T queries are the last of the S positions."""
    query = torch.arange(S - T, S, device=device).unsqueeze(-1)
    return _additive(torch.arange(S, device=device) <= query, dtype).unsqueeze(0)


def document_mask(
    document_ids: Int[Tensor, "B T"],
    dtype: torch.dtype = torch.float32,
    branch_ids: Int[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T T"]:
    """Causal attention within each document of a packed sequence: block-diagonal.

    With branches, a token sees of its document the trunk (branch 0) and its own branch, as if the others were not there.
    """
    same = document_ids.unsqueeze(-1) == document_ids.unsqueeze(-2)
    if branch_ids is not None:
        same &= _same_branch(branch_ids, branch_ids)
    return _additive(same.tril_(), dtype)


def _same_branch(queries: Int[Tensor, "*rows t"], keys: Int[Tensor, "*rows n"]) -> Bool[Tensor, "*rows t n"]:
    """Whether the key stands in the trunk or in the query's branch."""
    return (keys == 0).unsqueeze(-2) | (queries.unsqueeze(-1) == keys.unsqueeze(-2))


def padding_mask(
    attention_mask: Int[Tensor, "B S"] | Bool[Tensor, "B S"], T: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "B T S"]:
    """Causal attention that leaves out the keys whose `attention_mask` is 0, as in Hugging Face's left padding."""
    S = attention_mask.shape[-1]
    return causal_mask(T, S, dtype, attention_mask.device) + _additive(
        attention_mask.bool(), dtype
    ).unsqueeze(1)


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where allowed, `MASKED` elsewhere."""
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, MASKED)


def softmax(scores: Float[Tensor, "*rows S"]) -> Float[Tensor, "*rows S"]:
    """exp(s) / Σ exp(s) over the last axis, at least in float32; the largest score is taken off, lest exp overflows."""
    wide = scores if scores.dtype == torch.float64 else scores.float()
    exponentials = torch.exp(wide - wide.amax(-1, keepdim=True))
    return exponentials / exponentials.sum(-1, keepdim=True)


def plain_causal_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S D"],
    mask: Float[Tensor, "#B T S"] | None = None,
    dropout_probability: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B H T D"]:
    """The formula, line by line; all T × S weights are in memory, and autograd keeps several such arrays."""
    B, H, T, D = q.shape
    K, S = k.shape[1:3]
    if mask is None:
        mask = causal_mask(T, S, device=q.device)
    groups = q.reshape(B, K, H // K, T, D)  # the H/K query heads that share a key-value head
    scores = groups @ k.unsqueeze(2).transpose(-1, -2) / math.sqrt(D)
    weights = softmax(scores + mask[:, None, None]).to(v.dtype)
    weights = dropout(weights, dropout_probability, True, generator)
    return (weights @ v.unsqueeze(2)).reshape(B, H, T, D)


def _library_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S D"],
    mask: Float[Tensor, "#B T S"] | None = None,
    dropout_probability: float = 0.0,
) -> Float[Tensor, "B H T D"]:
    """torch's `scaled_dot_product_attention`: FlashAttention on a GPU. Its dropout uses torch's global generator."""
    if mask is None and q.shape[2] != k.shape[2]:  # is_causal would align the first query with the first key
        mask = causal_mask(q.shape[2], k.shape[2], device=q.device)
    bias = None if mask is None else mask.unsqueeze(1).to(q.dtype)
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, bias, dropout_probability, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]
    )


def causal_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S D"],
    mask: Float[Tensor, "#B T S"] | None = None,
    dropout_probability: float = 0.0,
    generator: torch.Generator | None = None,
    kernel: Literal["handwritten", "library"] = "handwritten",
    tiles: Sequence[_Tile] | None = None,
) -> Float[Tensor, "B H T D"]:
    """Attention of T queries, the last of S positions. `mask` is additive and causal; None is plain causal.

    `tiles`, where given, takes the place of the mask in the fused kernel; a pass through many layers plans them once.
    """
    if kernel == "library":
        return _library_attention(q, k, v, mask, dropout_probability)
    if dropout_probability > 0:
        return plain_causal_attention(q, k, v, mask, dropout_probability, generator)
    tiles = _plan_tiles(mask, q.shape[2], k.shape[2], q) if tiles is None else tiles
    return _CausalAttention.apply(q, k, v, tiles)


class _CausalAttention(torch.autograd.Function):
    """For each tile of queries, and the keys in its window:

    E = 2^((q kᵀ/√D + mask) log₂e - row maximum),  z = Σ E,  o = E v / z
    With a = do / z and δ = Σ a o over D:   dE = E (a vᵀ - δ),  dv += Eᵀ a,  dq = dE k / √D,  dk += dEᵀ q / √D

    z divides arrays of D columns instead of S; powers of 2 cost less than powers of e: log₂e goes into the product's scale,
    and torch's `exp` on a CPU is fifty times slower where it underflows, as it does at every masked score.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, tiles: Sequence[_Tile]) -> Tensor:
        B, H, T, D = q.shape  # of one row and N queries, where these stand behind one another
        K, S = k.shape[1:3]
        queries = q.reshape(B, K, H // K, T, D)
        output = q.new_empty(B, T, K, H // K, D)  # in the order that the next projection reads
        keep = any(ctx.needs_input_grad) and B * H * T * S <= _KEEP_WEIGHTS
        kept = []
        for tile in tiles:
            E, inverse_sum = _exponentials(queries, k, tile)
            o = torch.bmm(E, _keys_of(v, tile)).mul_(inverse_sum)
            output[tile.query_rows, tile.queries] = o.view(-1, K, H // K, tile.length, D).permute(
                0, 3, 1, 2, 4
            )
            if keep:
                kept += [E, inverse_sum]
        ctx.save_for_backward(queries, k, v, output, *kept)
        ctx.tiles = tiles
        return output.view(B, T, H, D).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, k, v, output, *kept = ctx.saved_tensors
        B, K, G, T, D = queries.shape
        d_output = d_output.transpose(1, 2).reshape(B, T, K, G, D)
        d_q, d_k, d_v = torch.empty_like(output), k.new_zeros(k.shape), v.new_zeros(v.shape)
        delta = (d_output * output).sum(-1, keepdim=True)  # [B, T, K, G, 1]
        for index, tile in enumerate(ctx.tiles):
            E, inverse_sum = kept[2 * index : 2 * index + 2] or _exponentials(queries, k, tile)
            a = _queries_of(d_output.permute(0, 2, 3, 1, 4), tile) * inverse_sum
            a_delta = _queries_of(delta.permute(0, 2, 3, 1, 4), tile) * inverse_sum
            _keys_of(d_v, tile).baddbmm_(E.transpose(1, 2), a)
            d_E = torch.bmm(a, _keys_of(v, tile).transpose(1, 2)).sub_(a_delta).mul_(E)
            _keys_of(d_k, tile).baddbmm_(d_E.transpose(1, 2), _queries_of(queries, tile))
            d_rows = torch.bmm(d_E, _keys_of(k, tile)).view(-1, K, G, tile.length, D)
            d_q[tile.query_rows, tile.queries] = d_rows.permute(0, 3, 1, 2, 4)
        scale = 1 / math.sqrt(D)
        return d_q.view(B, T, K * G, D).transpose(1, 2).mul_(scale), d_k.mul_(scale), d_v, None


def _exponentials(
    queries: Float[Tensor, "rows K G T D"], k: Float[Tensor, "B K S D"], tile: _Tile
) -> tuple[Float[Tensor, "BK Gt window"], Float[Tensor, "BK Gt 1"]]:
    """E of a tile, and 1 / Σ E."""
    K, G, D = queries.shape[1], queries.shape[2], queries.shape[-1]
    rows, keys = _queries_of(queries, tile), _keys_of(k, tile)
    scores = rows.new_empty(*rows.shape[:2], keys.shape[1])
    torch.baddbmm(scores, rows, keys.transpose(1, 2), beta=0, alpha=_LOG2_E / math.sqrt(D), out=scores)
    E = scores.to(torch.promote_types(scores.dtype, torch.float32))
    per_query = E.view(-1, K, G, tile.length, keys.shape[1])
    per_query[..., -tile.mask.shape[-1] :].add_(tile.mask[:, None, None])
    E.sub_(E.amax(-1, keepdim=True)).exp2_()
    inverse_sum = E.sum(-1, keepdim=True).reciprocal_()
    return E.to(rows.dtype), inverse_sum.to(rows.dtype)


def _queries_of(x: Float[Tensor, "B K G T X"], tile: _Tile) -> Float[Tensor, "BK Gt X"]:
    """The tile's rows of x, those of the heads that share a key-value head below each other."""
    part = x[tile.query_rows, :, :, tile.queries]
    return part.reshape(-1, part.shape[2] * part.shape[3], part.shape[4])


def _keys_of(x: Float[Tensor, "B K S D"], tile: _Tile) -> Float[Tensor, "BK window D"]:
    """The tile's window of x, a matrix for each key-value head: a view."""
    return x[tile.rows, :, tile.keys].flatten(0, 1)


def _plan_tiles(mask: Tensor | None, T: int, S: int, like: Tensor) -> list[_Tile]:
    """Tiles of queries in all rows of the batch, with the keys up to the last of them; without a mask, plain causal."""
    triangle = causal_mask(_QUERY_TILE, _QUERY_TILE, _mask_dtype(like), like.device)
    tiles = []
    for start in range(0, T, _QUERY_TILE):
        queries = slice(start, min(start + _QUERY_TILE, T))
        keys = slice(0, S - T + queries.stop)  # later keys are in the future of the whole tile
        length = queries.stop - queries.start
        # Among the keys before the tile's first query, plain causal attention has nothing to hide.
        hidden = triangle[:, :length, :length] if mask is None else mask[:, queries, keys]
        tiles.append(_Tile(slice(None), slice(None), queries, keys, hidden))
    return tiles


def _document_tiles(
    document_ids: Int[Tensor, "B T"], like: Tensor, branch_ids: Int[Tensor, "B T"] | None = None
) -> list[_Tile]:
    """Tiles that end where a document ends: the time grows with the documents' lengths, not with the row's.

    The branches of a document come after its trunk. Only among their keys, the last of a window, is anything to hide.
    """
    triangle = causal_mask(2 * _QUERY_TILE, 2 * _QUERY_TILE, _mask_dtype(like))
    B, T = document_ids.shape
    tiles = []
    for row in range(B):
        ends = ((document_ids[row].diff() != 0).nonzero().flatten() + 1).tolist()
        for begin, end in itertools.pairwise([0, *ends, T]):
            fork = end if branch_ids is None else begin + int((branch_ids[row, begin:end] == 0).sum())
            for start, stop in [*_cut(begin, fork), *_cut(fork, end)]:
                hidden = triangle[:, : stop - start, : stop - start]
                if branch_ids is not None and start >= fork:
                    branches = branch_ids[row, fork:stop]
                    seen = _same_branch(branches[start - fork :], branches).tril_(start - fork)
                    hidden = _additive(seen, hidden.dtype).unsqueeze(0)
                one = slice(row, row + 1)
                tiles.append(_Tile(one, one, slice(start, stop), slice(begin, stop), hidden))
    return tiles


def _cut(begin: int, end: int) -> list[tuple[int, int]]:
    """Pieces of `_QUERY_TILE` positions, but the last of up to half as many more: fewer, larger products."""
    starts = [begin, *range(begin + _QUERY_TILE, end - _QUERY_TILE // 2, _QUERY_TILE)]
    return list(itertools.pairwise([*starts, end])) if begin < end else []


def _read_tiles(tiles: Sequence[_Tile], read: Bool[Tensor, "B T"]) -> list[_Tile]:
    """What is left of the tiles when only the queries at `read` count, which stand one behind another in a row of their own."""
    B, T = read.shape
    before = [0, *read.flatten().cumsum(0).tolist()]  # how many are read before each position
    left = []
    for tile in tiles:
        for row in range(*tile.rows.indices(B)):
            begin, end = before[row * T + tile.queries.start], before[row * T + tile.queries.stop]
            if begin == end:
                continue
            hidden = tile.mask[row % len(tile.mask)].unsqueeze(0)
            if end - begin < tile.length:
                hidden = hidden[:, read[row, tile.queries]]
            left.append(_Tile(slice(row, row + 1), slice(0, 1), slice(begin, end), tile.keys, hidden))
    return left


def _mask_dtype(x: Tensor) -> torch.dtype:
    """The type of scores: float32 or wider."""
    return torch.promote_types(x.dtype, torch.float32)


class Gpt2Attention(nn.Module):
    """GPT-2's attention: one matrix for q, k and v, biases, learned positions elsewhere."""

    def __init__(self, config: ModelConfig, layer_index: int) -> None:
        super().__init__()
        self.num_heads, self.layer_index = config.num_attention_heads, layer_index
        self.c_attn = Conv1D(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = Conv1D(config.hidden_size, config.hidden_size)
        self.attention_dropout, self.residual_dropout = config.attention_dropout, config.resid_pdrop

    def forward(
        self, x: Float[Tensor, "B T C"], shared: SharedInputs, read: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "*rows C"]:
        """Mix information between positions; with `read`, what these found, as rows [N, C]."""
        parts = self.c_attn(x).split(x.shape[-1], dim=-1)
        q, k, v = (_split_heads(part, self.num_heads) for part in parts)
        if shared.cache is not None:
            k, v = shared.cache.update(self.layer_index, k, v)
        p = self.attention_dropout if self.training else 0.0
        y = self.c_proj(_attend(q, k, v, p, shared, read))
        return dropout(y, self.residual_dropout, self.training, shared.generator)


class LlamaAttention(nn.Module):
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
        self, x: Float[Tensor, "B T C"], shared: SharedInputs, read: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "*rows C"]:
        """Mix information between positions; with `read`, what these found, as rows [N, C]."""
        H, K, D = self.num_heads, self.num_key_value_heads, self.head_dim
        qkv = fused_linear(x, [self.q_proj, self.k_proj, self.v_proj])
        q, k, v = qkv.split([H * D, K * D, K * D], dim=-1)
        q, k, v = _split_heads(q, H), _split_heads(k, K), _split_heads(v, K)
        assert shared.rotary is not None, "Llama's attention needs the rotary tables"
        q, k = apply_rotary(q, *shared.rotary), apply_rotary(k, *shared.rotary)
        if shared.cache is not None:
            k, v = shared.cache.update(self.layer_index, k, v)
        p = self.attention_dropout if self.training else 0.0
        return self.o_proj(_attend(q, k, v, p, shared, read))


def _attend(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S D"],
    dropout_probability: float,
    shared: SharedInputs,
    read: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "*rows HD"]:
    """`causal_attention` with what all blocks share, the heads joined; with `read`, at these positions, as rows [N, HD].

    The first block makes the mask or plans the tiles for all.
    """
    fused = shared.kernel == "handwritten" and dropout_probability == 0
    documents = shared.document_ids
    if documents is not None and shared.mask is None and (q.is_cuda or not fused):
        # A GPU is not made to wait for their ends.
        shared.mask = document_mask(documents, _mask_dtype(q), shared.branch_ids)
    if fused and shared.tiles is None:
        if documents is not None and shared.mask is None:
            shared.tiles = _document_tiles(documents, q, shared.branch_ids)
        else:
            shared.tiles = _plan_tiles(shared.mask, q.shape[2], k.shape[2], q)
    tiles = shared.tiles
    if (
        read is not None and tiles is not None and not q.is_cuda
    ):  # a GPU is not made to wait for how many there are
        q = q.transpose(1, 2)[read].transpose(0, 1).unsqueeze(0)  # [1, H, N, D]
        y = _CausalAttention.apply(q, k, v, _read_tiles(tiles, read))
        return y.transpose(1, 2).flatten(2)[0]
    y = causal_attention(q, k, v, shared.mask, dropout_probability, shared.generator, shared.kernel, tiles)
    rows = y.transpose(1, 2).flatten(2)
    return rows if read is None else rows[read]


def _split_heads(x: Float[Tensor, "B T HD"], num_heads: int) -> Float[Tensor, "B H T D"]:
    """The last axis cut into heads, as a view."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)
