"""The matrix product with a bias: y = x Wᵀ + b. Llama keeps W as [out, in], GPT-2 as [in, out] (`Conv1D`).

Derivatives, which torch's autograd finds: dx = dy W, dW = dyᵀ x, db = Σ dy over all rows.

Level 1: `torch.nn.Linear` and transformers' `Conv1D`. Level 3: the same classes over its own autograd.

    uv run python -c "import torch; from v2_handwritten.models.blocks.linear import Linear; print(Linear(4, 3)(torch.ones(2, 4)).shape)"
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


def linear(
    x: Float[Tensor, "*rows I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, "O"] | None = None
) -> Float[Tensor, "*rows O"]:
    """x Wᵀ + b."""
    rows = x.reshape(-1, x.shape[-1])
    y = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
    return y.view(*x.shape[:-1], weight.shape[0])


class Linear(nn.Module):
    """y = x Wᵀ + b with W [out_features, in_features], as Llama's checkpoints have it.

    `compute_dtype`, where set, is the type of the product (mixed precision): inputs are cast to it, parameters keep theirs.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
        """Apply the layer to the last axis."""
        dtype = self.compute_dtype or self.weight.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return linear(x.to(dtype), self.weight.to(dtype), bias)


class Conv1D(nn.Module):
    """y = x W + b with W [in_features, out_features], as GPT-2's checkpoints have it; the name is GPT-2's own."""

    compute_dtype: torch.dtype | None = None

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
        """Apply the layer to the last axis."""
        dtype = self.compute_dtype or self.weight.dtype
        return linear(x.to(dtype), self.weight.to(dtype).T, self.bias.to(dtype))


def merged_linear(x: Float[Tensor, "*rows I"], layers: Sequence[nn.Module]) -> Float[Tensor, "*rows O"]:
    """The outputs of several layers on the same input, side by side."""
    return torch.cat([layer(x) for layer in layers], dim=-1)
