"""Rotary position embedding: transformers' `LlamaRotaryEmbedding` makes the tables, `apply_rotary_pos_emb` rotates.

python -c "from v1_quick.models.blocks.rope import *; from transformers import LlamaConfig; print(rotary_frequencies(LlamaConfig()).shape)"
"""

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb


def rotary_frequencies(config: LlamaConfig) -> Tensor:
    """Radians per position for each pair of a head, [D/2], in the library's float32."""
    return LlamaRotaryEmbedding(config).inv_freq


def rotary_tables(
    frequencies: Tensor, position_ids: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """cos and sin [B, T, D]: the library repeats each angle for both halves of a head."""
    angles = position_ids[..., None].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs of each head [B, H, T, D]; the library does queries and keys in one call."""
    return apply_rotary_pos_emb(x, x, cos, sin)[0]
