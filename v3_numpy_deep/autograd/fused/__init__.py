"""Fused operations: compositions of primitives with one derivative of their own.

Composed from primitives, an operation writes each intermediate array to memory and keeps it for the backward pass. A fused
one works on blocks that stay in the processor's cache, keeps only what the derivative needs, and often has a derivative
far shorter than its composition's. The composition of each is the `plain_…` function of the block that uses it (models/blocks), and tests hold the two equal.
"""

from v3_numpy_deep.autograd.fused.activations import gelu_new, swiglu
from v3_numpy_deep.autograd.fused.attention import attention
from v3_numpy_deep.autograd.fused.cross_entropy import cross_entropy, linear_cross_entropy
from v3_numpy_deep.autograd.fused.embedding import embedding
from v3_numpy_deep.autograd.fused.linear import conv1d, linear
from v3_numpy_deep.autograd.fused.normalization import layer_norm, rms_norm
from v3_numpy_deep.autograd.fused.rotary import rotary

__all__ = [
    "attention",
    "conv1d",
    "cross_entropy",
    "embedding",
    "gelu_new",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "rms_norm",
    "rotary",
    "swiglu",
]
