"""Rows of a table, looked up by id: the product of one-hot vectors with a matrix, without making them.

Derivative: row i of the table receives the sum of the gradients at all positions that hold i. `gradient[ids] += g` would be
wrong: of several positions with the same id it keeps one. `np.add.at` adds them all, one after the other, in the same order in
every run (sorting the ids first and summing consecutive rows with `np.add.reduceat` is no faster with NumPy 2).
Level 2 leaves the scatter to torch's `index_put_`; level 1 calls `torch.nn.functional.embedding`.

    python -c "from v3_numpy_deep.autograd.fused.embeddings import embed; help(embed)"
"""

import numpy as np
from jaxtyping import Float, Int

from v3_numpy_deep.autograd.tensor import Array, Tensor, record


def embed(weight: Float[Tensor, "V C"], ids: Int[Array, "*shape"]) -> Float[Tensor, "*shape C"]:
    """weight[ids];  ∂weight[i] = Σ of g over the positions whose id is i"""
    shape = weight.shape

    def derivative(g: Array) -> tuple[Array]:
        gradient = np.zeros(shape, g.dtype)
        np.add.at(gradient, ids, g)
        return (gradient,)

    return record(weight.data[ids], (weight,), derivative)
