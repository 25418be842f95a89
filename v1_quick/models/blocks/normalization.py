"""Normalisation: `torch.nn.LayerNorm` (GPT-2) and transformers' `LlamaRMSNorm`.

python -c "import torch; from v1_quick.models.blocks.normalization import *; print(RMSNorm(4)(torch.arange(4.0)))"
"""

from torch.nn import LayerNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm as RMSNorm

__all__ = ["LayerNorm", "RMSNorm"]
