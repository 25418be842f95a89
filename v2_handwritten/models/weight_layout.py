"""How matrices lie in memory: for a model that writes, as one decode step reads them.

A decode step multiplies one vector with every matrix, y = x Wᵀ, and is as fast as memory delivers the matrices. Of W [out, in] stored row by row,
that is a dot product a row; stored column by column it is y += x_i · (column i), which a CPU streams up to twice as fast. And matrices that
read the same vector are read in one go where they lie side by side: q, k and v; gate and up.

Nothing is copied: parameters keep their shapes and become views of memory in another order. Training wants rows again
(`lay_out_for_training`, called by `make_optimizer`).

Level 1: the library keeps rows. Level 3: the same over NumPy. Theory: ../inference/decoder.md.

    uv run python -c "import torch; from v2_handwritten.models.weight_layout import *; print(by_columns(torch.zeros(3, 2)).stride())"
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from v2_handwritten.models.blocks.linear import Linear


def by_columns(weight: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
    """The same matrix, stored column by column."""
    return weight.T.contiguous().T


def lay_out_for_decoding(model: nn.Module) -> None:
    """Store the matrices of Llama's blocks by columns, those that read the same vector side by side. (GPT-2's files have them so.)"""
    for layers in _readers_of_one_vector(model):
        joined = torch.cat([layer.weight.data.T for layer in layers], dim=1)
        parts = joined.split([len(layer.weight) for layer in layers], dim=1)
        for layer, part in zip(layers, parts, strict=True):
            layer.weight.data = part.T


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


def _readers_of_one_vector(model: nn.Module) -> Iterator[list[Linear]]:
    """The layers that read the same vector, of each block. (`down` has more rows than columns, and is faster by rows.)"""
    for block in model.modules():
        for names in (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj")):
            layers = [getattr(block, name, None) for name in names]
            if all(type(layer) is Linear for layer in layers):
                yield layers
