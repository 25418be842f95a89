"""Token and position embeddings: a row of a table for each id.

Looking up row i is the product of a one-hot vector with the table, so the derivative adds the gradient of every
occurrence of an id onto that id's row. GPT-2 adds a learned vector for each position (Vaswani et al. 2017, section 3.5);
Llama has none, it rotates queries and keys instead (rope.py).

Level 1: `torch.nn.Embedding`. Level 3: the same classes over `autograd.fused.embedding`.

    python -c "import torch; from v2_handwritten.models.blocks.embeddings import *; print(TokenEmbedding(8, 4)(torch.tensor([[1, 2]])))"
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def plain_embed(weight: Float[Tensor, "V C"], ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape C"]:
    """The rows of the table that `ids` names."""
    return weight[ids]


def embed(weight: Float[Tensor, "V C"], ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape C"]:
    """`plain_embed` with its derivative written out."""
    return _Embed.apply(weight, ids)


class _Embed(torch.autograd.Function):
    """y_n = W[i_n];  dW[v] = Σ of dy_n over all n with i_n = v."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows = weight.shape[0]
        return weight.index_select(0, ids.reshape(-1)).view(*ids.shape, -1)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        C = d_y.shape[-1]
        d_weight, rows, d_rows = d_y.new_zeros(ctx.rows, C), ids.reshape(-1), d_y.reshape(-1, C)
        if d_y.is_cuda:  # index_add_ would add in an order that changes from run to run
            return d_weight.index_put_((rows,), d_rows, accumulate=True), None
        return d_weight.index_add_(0, rows, d_rows), None


class TokenEmbedding(nn.Module):
    """A vector of size C for each of V tokens."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(vocab_size, hidden_size))

    def forward(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """Look the tokens up."""
        return embed(self.weight, input_ids)


class PositionEmbedding(nn.Module):
    """A learned vector of size C for each position; there is none beyond the last (GPT-2)."""

    def __init__(self, max_position_embeddings: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(max_position_embeddings, hidden_size))

    def forward(self, position_ids: Int[Tensor, "#B T"]) -> Float[Tensor, "#B T C"]:
        """Look the positions up."""
        return embed(self.weight, position_ids)
