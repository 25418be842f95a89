"""The matrix product with a bias: y = x Wᵀ + b. Llama keeps W as [out, in], GPT-2 as [in, out] (`Conv1D`).

Derivatives (autograd/fused/linear.py): dx = dy W, dW = dyᵀ x, db = Σ dy over all rows. `merged_linear` applies several
layers to the same input; the fused version makes one product of them, which uses a processor better than three small ones.

Level 1: `torch.nn.Linear` and transformers' `Conv1D`. Level 2: the same classes over torch, with mixed precision.

    uv run python -c "import numpy as np; from v3_numpy_deep.models.blocks.linear import *; print(Linear(4, 3)(Tensor(np.ones((2, 4), 'f'))).shape)"
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from v3_numpy_deep.autograd import Module, Parameter, Tensor
from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.autograd.kernels import kernel


# In shapes, a small o: the shape checker of the tests knows `Float[Tensor, "O"] | None` by its text, and would take it for
# the torch tensor of level 2.
def linear(
    x: Float[Tensor, "*rows I"], weight: Float[Tensor, "o I"], bias: Float[Tensor, "o"] | None = None
) -> Float[Tensor, "*rows o"]:
    """x Wᵀ + b."""
    y = x @ ops.transpose(weight)
    return y if bias is None else y + bias


class Linear(Module):
    """y = x Wᵀ + b with W [out_features, in_features], as Llama's checkpoints have it."""

    kernels = "fused"

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = Parameter(np.zeros((out_features, in_features), np.float32))
        self.bias = Parameter(np.zeros(out_features, np.float32)) if bias else None

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows o"]:
        """Apply the layer to the last axis."""
        return kernel(self.kernels, linear)(x, self.weight, self.bias)


class Conv1D(Module):
    """y = x W + b with W [in_features, out_features], as GPT-2's checkpoints have it; the name is GPT-2's own."""

    kernels = "fused"

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = Parameter(np.zeros((in_features, out_features), np.float32))
        self.bias = Parameter(np.zeros(out_features, np.float32))

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows o"]:
        """Apply the layer to the last axis."""
        return kernel(self.kernels, linear)(x, ops.transpose(self.weight), self.bias)


def merged_linear(x: Float[Tensor, "*rows I"], layers: Sequence[Module]) -> Float[Tensor, "*rows o"]:
    """The outputs of several layers side by side; fused, as one product with their weights stacked."""
    return ops.concatenate([layer(x) for layer in layers], axis=-1)
