"""Rows of a table, looked up by id: the product of one-hot vectors with a matrix, without making them.

Derivative: row i of the table receives the sum of the gradients at all positions that read it. NumPy's unbuffered
`np.add.at` does this one position after the other; sorting the ids first turns it into sums over consecutive rows.
From primitives it is `getitem(weight, ids)`. Level 2 leaves the scatter to torch's `index_put_`; level 1 calls
`torch.nn.functional.embedding`.

    python -c "from v3_numpy_deep.autograd.fused.embedding import embedding; help(embedding)"
"""

import numpy as np
from jaxtyping import Float, Int

from v3_numpy_deep.autograd.tensor import Array, Tensor, record


def embedding(weight: Float[Tensor, "V C"], ids: Int[Array, "*batch"]) -> Float[Tensor, "*batch C"]:
    """weight[ids]"""
    V, C = weight.shape

    def derivative(g: Array) -> tuple[Array]:
        order = np.argsort(ids, axis=None, kind="stable")  # stable: the same order of summation in every run
        sorted_ids = ids.reshape(-1)[order]
        starts = np.flatnonzero(np.diff(sorted_ids, prepend=-1))
        gradient = np.zeros((V, C), g.dtype)
        gradient[sorted_ids[starts]] = np.add.reduceat(g.reshape(-1, C)[order], starts, axis=0)
        return (gradient,)

    return record(weight.data[ids], (weight,), derivative)
