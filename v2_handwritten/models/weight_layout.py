"""How matrices lie in memory: for a model that writes, as one decode step reads them.

A decode step multiplies one vector with every matrix, y = x Wᵀ, and is as fast as memory delivers the matrices. Of W [out, in] stored row by row,
that is a dot product a row; stored column by column it is y += x_i · (column i), which a CPU streams up to twice as fast. And matrices that
read the same vector are read in one go where they lie side by side: q, k and v; gate and up.

Nothing is copied: parameters keep their shapes and become views of memory in another order. Training wants rows again
(`lay_out_for_training`, called by `make_optimizer`).

Level 1: the library keeps rows. Level 3: the same over NumPy. Theory: ../inference/decoder.md.

    uv run python -c "import torch; from v2_handwritten.models.weight_layout import *; print(by_columns(torch.zeros(3, 2)).stride())"
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

_READ_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # of Llama's blocks


def by_columns(weight: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
    """The same matrix, stored column by column."""
    return weight.T.contiguous().T


def for_decoding(tensors: Iterable[tuple[str, Tensor]], head_name: str) -> Iterator[tuple[str, Tensor]]:
    """The same tensors of a checkpoint, stored so, as they come: no second copy of a model is ever there.

    (GPT-2's files have its matrices so already. `down` has more rows than columns, and is as fast by rows.)
    """
    waiting: dict[str, Tensor] = {}
    for name, tensor in tensors:
        module = name.removesuffix(".weight").rpartition(".")[2]
        together = next((names for names in _READ_TOGETHER if module in names), ())
        if name == head_name or module == "o_proj":
            yield name, by_columns(tensor)
        elif together:
            waiting[name] = tensor
            if len(waiting) == len(together):
                yield from _join(waiting)
                waiting = {}
        else:
            yield name, tensor


def _join(matrices: dict[str, Float[Tensor, "_ I"]]) -> Iterator[tuple[str, Float[Tensor, "_ I"]]]:
    """Matrices that read the same vector, side by side."""
    joined = torch.cat([matrix.T for matrix in matrices.values()], dim=1)
    parts = joined.split([len(matrix) for matrix in matrices.values()], dim=1)
    return zip(matrices, (part.T for part in parts), strict=True)


def lay_out_for_training(model: nn.Module) -> None:
    """Store every parameter row by row, each for itself."""
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()


def side_by_side(matrices: Sequence[Float[Tensor, "I _"]]) -> list[Float[Tensor, "I _"]]:
    """The matrices [in, out] as one where they lie next to each other in memory, else as they are."""
    first, widths = matrices[0], [matrix.shape[1] for matrix in matrices]
    offsets = [sum(widths[:place]) * first.element_size() for place in range(len(matrices))]
    next_to_each_other = all(
        matrix.data_ptr() == first.data_ptr() + offset
        and matrix.stride() == first.stride() == (sum(widths), 1)
        for matrix, offset in zip(matrices, offsets, strict=True)
    )
    if not next_to_each_other:
        return list(matrices)
    return [first.as_strided((first.shape[0], sum(widths)), first.stride())]
