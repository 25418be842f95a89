"""Fused operations: compositions of primitives with one derivative of their own, forward and backward side by side.

Composed from primitives, an operation writes each intermediate array to memory and keeps it for the backward pass. A fused
one works on blocks that stay in the processor's cache, keeps only what the derivative needs, and often has a derivative
far shorter than its composition's. Each has the name and signature of the formula it replaces (models/blocks);
`kernel` (../kernels.py) chooses between the two, and tests hold them equal. Theory: ../fused.md.
"""

from v3_numpy_deep.autograd.fused.attention import causal_attention
from v3_numpy_deep.autograd.fused.cross_entropy import cross_entropy, linear_cross_entropy
from v3_numpy_deep.autograd.fused.feed_forward import gelu_new, swiglu
from v3_numpy_deep.autograd.fused.gathered_attention import selected_attention
from v3_numpy_deep.autograd.fused.linear import linear, merged_linear
from v3_numpy_deep.autograd.fused.log_probs import linear_log_probs
from v3_numpy_deep.autograd.fused.mixture_of_experts import expert_mixture
from v3_numpy_deep.autograd.fused.normalization import layer_norm, rms_norm
from v3_numpy_deep.autograd.fused.rope import apply_rotary
from v3_numpy_deep.autograd.fused.sparse_indexer import attention_kl

__all__ = [
    "apply_rotary",
    "attention_kl",
    "causal_attention",
    "cross_entropy",
    "expert_mixture",
    "gelu_new",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "linear_log_probs",
    "merged_linear",
    "rms_norm",
    "selected_attention",
    "swiglu",
]
