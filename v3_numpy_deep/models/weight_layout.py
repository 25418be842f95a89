"""How matrices lie in memory: for a model that writes, as one decode step reads them.

A decode step multiplies one vector with every matrix, y = x Wᵀ, and is as fast as memory delivers the matrices. Of W [out, in] stored row by row,
that is a dot product a row; stored column by column it is y += x_i · (column i), which a CPU streams up to twice as fast. And matrices that
read the same vector are read in one go where they lie side by side: q, k and v; gate and up.

Nothing is copied: parameters keep their shapes and become views of memory in another order. Training wants rows again
(`lay_out_for_training`, called by `make_optimizer`).

Level 1: the library keeps rows. Level 2: the same over torch. Theory: v2_handwritten/inference/decoder.md.

    uv run python -c "import numpy as np; from v3_numpy_deep.models.weight_layout import *; print(by_columns(np.zeros((3, 2))).strides)"
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float
from numpy.lib.stride_tricks import as_strided

from v3_numpy_deep.autograd import Array, Module

_READ_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # of Llama's blocks


def by_columns(weight: Float[Array, "O I"]) -> Float[Array, "O I"]:
    """The same matrix, stored column by column."""
    return np.asfortranarray(weight)


def for_decoding(tensors: Iterable[tuple[str, Array]], head_name: str) -> Iterator[tuple[str, Array]]:
    """The same tensors of a checkpoint, stored so, as they come: no second copy of a model is ever there.

    (GPT-2's files have its matrices so already. `down` has more rows than columns, and is as fast by rows.)
    """
    waiting: dict[str, Array] = {}
    for name, array in tensors:
        module = name.removesuffix(".weight").rpartition(".")[2]
        together = next((names for names in _READ_TOGETHER if module in names), ())
        if name == head_name or module == "o_proj":
            yield name, by_columns(array)
        elif together:
            waiting[name] = array
            if len(waiting) == len(together):
                yield from _join(waiting)
                waiting = {}
        else:
            yield name, array


def _join(matrices: dict[str, Float[Array, "_ I"]]) -> Iterator[tuple[str, Float[Array, "_ I"]]]:
    """Matrices that read the same vector, side by side."""
    joined = np.concatenate(list(matrices.values())).T.copy()
    ends = np.cumsum([len(matrix) for matrix in matrices.values()])
    return zip(matrices, (part.T for part in np.split(joined, ends[:-1], axis=1)), strict=True)


def lay_out_for_training(model: Module) -> None:
    """Store every parameter row by row, each for itself."""
    for parameter in model.parameters():
        parameter.data = np.ascontiguousarray(parameter.data)


def side_by_side(matrices: Sequence[Float[Array, "I _"]]) -> list[Float[Array, "I _"]]:
    """The matrices [in, out] as one where they lie next to each other in memory, else as they are."""
    first, widths = matrices[0], [matrix.shape[1] for matrix in matrices]
    strides = (sum(widths) * first.itemsize, first.itemsize)
    place = first.ctypes.data
    for matrix in matrices:
        if matrix.ctypes.data != place or matrix.strides != strides:
            return list(matrices)
        place += matrix.shape[1] * first.itemsize
    return [as_strided(first, (first.shape[0], sum(widths)), strides)]
