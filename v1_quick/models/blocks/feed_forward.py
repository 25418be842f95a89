"""The feed-forward layer: transformers' `GPT2MLP` (GELU) and `LlamaMLP` (SwiGLU).

python -c "import torch; from v1_quick.models.blocks.feed_forward import *; print(gelu_new(torch.tensor([-1.0, 1.0])))"
"""

from torch.nn.functional import gelu, silu
from transformers.activations import ACT2FN
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP as Gpt2FeedForward  # noqa: N811
from transformers.models.llama.modeling_llama import LlamaMLP as LlamaFeedForward

gelu_new = ACT2FN["gelu_new"]

__all__ = ["Gpt2FeedForward", "LlamaFeedForward", "gelu", "gelu_new", "silu"]
