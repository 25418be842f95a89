"""The fused kernels by name, each with the derivative by hand; the formulas they compute stand in models/blocks."""

from v2_handwritten.kernels.fused.attention import causal_attention
from v2_handwritten.kernels.fused.cross_entropy import linear_cross_entropy
from v2_handwritten.kernels.fused.embeddings import embed
from v2_handwritten.kernels.fused.feed_forward import gelu_new, swiglu
from v2_handwritten.kernels.fused.gathered_attention import selected_attention
from v2_handwritten.kernels.fused.linear import merged_linear
from v2_handwritten.kernels.fused.log_probs import linear_log_probs
from v2_handwritten.kernels.fused.mixture_of_experts import expert_mixture
from v2_handwritten.kernels.fused.normalization import layer_norm, rms_norm
from v2_handwritten.kernels.fused.rope import apply_rotary
from v2_handwritten.kernels.fused.sparse_indexer import attention_kl

__all__ = [
    "apply_rotary",
    "attention_kl",
    "causal_attention",
    "embed",
    "expert_mixture",
    "gelu_new",
    "layer_norm",
    "linear_cross_entropy",
    "linear_log_probs",
    "merged_linear",
    "rms_norm",
    "selected_attention",
    "swiglu",
]
