"""Token and position embeddings: a row of a table for each id.

Looking up row i is the product of a one-hot vector with the table, so the derivative adds the gradient of every
occurrence of an id onto that id's row. GPT-2 adds a learned vector for each position (Vaswani et al. 2017, section 3.5);
Llama has none, it rotates queries and keys instead (rope.py).

Level 1: `torch.nn.Embedding`. Level 3: the same classes over its own autograd.

    uv run python -c "from v2_handwritten.models.blocks.embeddings import *; print(TokenEmbedding(8, 4)(torch.tensor([[1, 2]])))"
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from v2_handwritten.kernels import kernel


def embed(weight: Float[Tensor, "V C"], ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape C"]:
    """The rows of the table that `ids` names."""
    return weight[ids]


class TokenEmbedding(nn.Module):
    """A vector of size C for each of V tokens, times `scale` (Gemma), which is rounded to the type of the table, as in transformers."""

    kernels = "fused"

    def __init__(self, vocab_size: int, hidden_size: int, scale: float | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(vocab_size, hidden_size))
        self.scale = scale

    def forward(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """Look the tokens up."""
        vectors = kernel(self.kernels, embed)(self.weight, input_ids)
        # A tensor: a number would be multiplied with in float32 and rounded afterwards.
        return vectors if self.scale is None else vectors * vectors.new_tensor(self.scale)


class PositionEmbedding(nn.Module):
    """A learned vector of size C for each position; there is none beyond the last (GPT-2)."""

    kernels = "fused"

    def __init__(self, max_position_embeddings: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(max_position_embeddings, hidden_size))

    def forward(self, position_ids: Int[Tensor, "#B T"]) -> Float[Tensor, "#B T C"]:
        """Look the positions up."""
        return kernel(self.kernels, embed)(self.weight, position_ids)
