"""The formulas of models/blocks as torch has them: the fastest choice on a GPU, and a second opinion on ours.

causal_attention(q, k, v, mask)   # as models/blocks/attention.py
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from v2_handwritten.kernels.fused.linear import merged_linear
from v2_handwritten.models.blocks import attention as plain
from v2_handwritten.models.blocks.attention_mask import AttentionMask
from v2_handwritten.models.blocks.cross_entropy import IGNORE_INDEX, soft_capped

__all__ = ["merged_linear"]  # torch has none; the fused one is its matrix product


def causal_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S Dv"],
    mask: AttentionMask | None = None,
    dropout_p: float = 0.0,
    generator: torch.Generator | None = None,
    sinks: Float[Tensor, "H"] | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "B H T Dv"]:
    """FlashAttention on a GPU, where no mask is needed.

    torch's function has neither sinks nor soft-capped scores, and drops weights by a generator that no run restores: with these, the
    plain formula is computed.
    """
    if sinks is not None or softcap is not None or dropout_p > 0:
        return plain.causal_attention(q, k, v, mask, dropout_p, generator, sinks, softcap)
    T, S = q.shape[2], k.shape[2]
    mask = mask or AttentionMask(T, S, q.device)
    is_causal = mask.is_causal and T == S  # torch would align the first query with the first key
    bias = None if is_causal else mask.additive(q.dtype).unsqueeze(1)
    return functional.scaled_dot_product_attention(
        q, k, v, bias, dropout_p, is_causal=is_causal, enable_gqa=q.shape[1] != k.shape[1]
    )


def cross_entropy(
    logits: Float[Tensor, "N V"], targets: Int[Tensor, "N"], ignore_index: int = IGNORE_INDEX
) -> Float[Tensor, ""]:
    """Mean of -log softmax(logits)[target] over the targets that count; 0 where none does."""
    count = (targets != ignore_index).sum().clamp(min=1)
    return functional.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="sum") / count


def linear_cross_entropy(
    hidden: Float[Tensor, "N C"],
    weight: Float[Tensor, "V C"],
    targets: Int[Tensor, "N"],
    ignore_index: int = IGNORE_INDEX,
    softcap: float | None = None,
) -> Float[Tensor, ""]:
    """`cross_entropy` of the logits hidden · weightᵀ, soft-capped, in float32 or wider."""
    logits = soft_capped(hidden @ weight.T, softcap)
    return cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, ignore_index)


def selected_log_probs(
    logits: Float[Tensor, "*rows V"], ids: Int[Tensor, "*rows"], temperature: float = 1.0
) -> Float[Tensor, "*rows"]:
    """log softmax(z/τ) of the tokens `ids`, in float32 or wider."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.log_softmax(wide / temperature, dim=-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def layer_norm(
    x: Float[Tensor, "*rows C"], weight: Float[Tensor, "C"], bias: Float[Tensor, "C"], eps: float
) -> Float[Tensor, "*rows C"]:
    """(x - mean(x)) / sqrt(var(x) + ε) · w + b"""
    return functional.layer_norm(x, weight.shape, weight, bias, eps)


def rms_norm(x: Float[Tensor, "*rows C"], weight: Float[Tensor, "C"], eps: float) -> Float[Tensor, "*rows C"]:
    """x / sqrt(mean(x²) + ε) · w"""
    return functional.rms_norm(x, weight.shape, weight, eps)


def gelu_new(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))"""
    return functional.gelu(x, approximate="tanh")


def gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x · Φ(x)"""
    return functional.gelu(x)


def swiglu(gate_up: Float[Tensor, "*rows twoF"]) -> Float[Tensor, "*rows F"]:
    """silu(gate) · up"""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def embed(weight: Float[Tensor, "V C"], ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape C"]:
    """The rows of the table that `ids` names."""
    return functional.embedding(ids, weight)
