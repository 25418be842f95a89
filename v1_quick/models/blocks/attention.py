"""Causal self-attention: transformers' `GPT2Attention` and `LlamaAttention`, over torch's fused kernel.

python -c "import torch; from v1_quick.models.blocks.attention import *; q = torch.randn(1, 4, 8, 16); print(causal_attention(q, q, q).shape)"
"""

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention as Gpt2Attention
from transformers.models.llama.modeling_llama import LlamaAttention

__all__ = ["Gpt2Attention", "LlamaAttention", "causal_attention"]


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout_probability: float = 0.0
) -> Tensor:
    """softmax(q kᵀ / √D + mask) v for q [B, H, T, D] and k, v [B, K, T, D]; without a mask [B, T, T], causal."""
    return scaled_dot_product_attention(
        q,
        k,
        v,
        None if mask is None else mask.unsqueeze(1),
        dropout_probability,
        is_causal=mask is None,
        enable_gqa=True,
    )
