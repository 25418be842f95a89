"""Token and position embeddings: a row of a table for each id.

Looking up row i is the product of a one-hot vector with the table, so the derivative adds the gradient of every
occurrence of an id onto that id's row: `np.add.at`, in `getitem` of autograd/operations.py. `gradient[ids] += g` would keep one
of several. Sorting the ids and summing runs of equal ones (`np.add.reduceat`) is no faster with NumPy 2. GPT-2 adds a learned vector for each position (Vaswani et al. 2017, section 3.5);
Llama has none, it rotates queries and keys instead (rope.py).

Level 1: `torch.nn.Embedding`. Level 2: the same classes over torch.

    uv run python -c "import numpy as np; from v3_numpy_deep.models.blocks.embeddings import *; print(TokenEmbedding(8, 4)(np.array([[1, 2]])))"
"""

import numpy as np
from jaxtyping import Float, Int

from v3_numpy_deep.autograd import Array, Module, Parameter, Tensor


def embed(weight: Float[Tensor, "V C"], ids: Int[Array, "*shape"]) -> Float[Tensor, "*shape C"]:
    """The rows of the table that `ids` names."""
    return weight[ids]


class TokenEmbedding(Module):
    """A vector of size C for each of V tokens, times `scale` (Gemma)."""

    def __init__(self, vocab_size: int, hidden_size: int, scale: float | None = None) -> None:
        super().__init__()
        self.weight = Parameter(np.zeros((vocab_size, hidden_size), np.float32))
        self.scale = scale

    def forward(self, input_ids: Int[Array, "B T"]) -> Float[Tensor, "B T C"]:
        """Look the tokens up."""
        vectors = embed(self.weight, input_ids)
        return vectors if self.scale is None else vectors * self.scale


class PositionEmbedding(Module):
    """A learned vector of size C for each position; there is none beyond the last (GPT-2)."""

    def __init__(self, max_position_embeddings: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = Parameter(np.zeros((max_position_embeddings, hidden_size), np.float32))

    def forward(self, position_ids: Int[Array, "#B T"]) -> Float[Tensor, "#B T C"]:
        """Look the positions up."""
        return embed(self.weight, position_ids)
