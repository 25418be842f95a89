"""The look-up in a table with its derivative by hand. Derivation: models/blocks/embeddings.md.

Level 3: the same over NumPy.

    embed(weight, ids)   # as models/blocks/embeddings.py
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def embed(weight: Float[Tensor, "V C"], ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape C"]:
    """The rows of the table that `ids` names."""
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
