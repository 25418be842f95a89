"""The matrices of a quantized model as its decode step multiplies them: as functions of one row, compiled.

Compiling takes seconds for each shape of matrix, so it is done where it pays: for one sequence on a CPU, and weights that do not fit into a
processor's cache. All else takes the ordinary forward pass.

Level 1: the libraries' own kernels. Level 3: the ordinary pass. Theory: ../models/quantization/quantization.md.

    if can_decode(model, rows=1): weights = matrices_of(model)
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shared_data.peft.adapted_model import merged_state_dict
from shared_data.peft.target_modules import linear_layers
from v2_handwritten.kernels.quantized_row import can_compile, int4_row, int8_row, mixed_row, rows_of
from v2_handwritten.models.quantization.int4 import LARGEST_CODE, Int4Linear
from v2_handwritten.models.quantization.int8 import Int8Linear
from v2_handwritten.models.transformer import Transformer
from v2_handwritten.models.weight_layout import side_by_side

FEWEST_WEIGHTS = 2**24  # quantized weights for which compiling pays
QuantizedLayer = Int8Linear | Int4Linear


class QuantizedMatrix:
    """One or several quantized matrices as a function of a row [1, I]: their products, one after the other.

    Codes have one order in memory, so the matrix is its own transpose.
    """

    def __init__(self, layers: Sequence[QuantizedLayer]) -> None:
        self.layers = list(layers)
        shapes = [weight_shape(layer) for layer in layers]
        self.shape = (shapes[0][1], sum(shape[0] for shape in shapes))  # [in, out]
        self.tensors = [row_arguments(layer) for layer in layers]
        first: Any = layers[0]
        self.is_int8 = isinstance(first, Int8Linear)
        self.threshold: float = first.threshold if self.is_int8 else 0.0
        # A function is compiled for the shapes of all its tensors: groups of other sizes are another function.
        stored = [tuple(tensor.shape) for tensors in self.tensors for tensor in tensors]
        self.products = rows_of(int8_row if self.is_int8 else int4_row, *shapes, *stored)

    @property
    def T(self) -> "QuantizedMatrix":  # noqa: N802 - as of a tensor
        return self

    def __call__(self, x: Float[Tensor, "1 I"]) -> Float[Tensor, " O"]:
        # Not compiled: a compiler leaves the step over float16 out, and the threshold would be that of the first model.
        row = mixed_row(x[0], self.threshold) if self.is_int8 else x[0]
        return self.products(row, self.tensors)


def joined(matrices: Sequence[Any]) -> list[Any]:
    """Matrices that read the same vector as one: quantized ones in one call, others where they lie side by side in memory."""
    if isinstance(matrices[0], QuantizedMatrix):
        return [QuantizedMatrix([layer for matrix in matrices for layer in matrix.layers])]
    return side_by_side(matrices)


def weight_shape(layer: QuantizedLayer) -> tuple[int, int]:
    """[out, in]"""
    if isinstance(layer, Int8Linear):
        return layer.codes.shape[0], layer.codes.shape[1]
    return layer.qweight.shape[1], 8 * layer.qweight.shape[0]


def row_arguments(layer: QuantizedLayer) -> tuple[Tensor, ...]:
    """What `int8_row` or `int4_row` needs besides the row."""
    if isinstance(layer, Int8Linear):
        return layer.codes, layer.absmax
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    zeros = (layer.qzeros.unsqueeze(2) >> shifts) + int(layer.shifted_zeros) & LARGEST_CODE
    return layer.qweight, zeros.flatten(1).float(), layer.scales.float()


def has_groups_in_order(layer: Int4Linear) -> bool:
    """Whether neighbouring inputs share a group, as they do but for GPTQ's act_order."""
    group_size = len(layer.g_idx) // len(layer.scales)
    return bool((layer.g_idx == torch.arange(len(layer.g_idx)) // group_size).all())


def can_decode(model: Transformer, rows: int) -> bool:
    """Whether a quantized model has compiled decode steps for so many sequences."""
    config, layers = model.config, [place.layer for place in linear_layers(model)]
    if rows > 1 or model.lm_head.weight.device.type != "cpu" or model.lm_head.weight.dtype != torch.float32:
        return False
    if not replace(config, quantization=None).has_plain_blocks:
        return False
    known = all(
        type(layer) is Int8Linear or (type(layer) is Int4Linear and has_groups_in_order(layer))
        for layer in layers
    )
    if not known or sum(math.prod(weight_shape(layer)) for layer in layers) < FEWEST_WEIGHTS:
        return False
    return can_compile()


def matrices_of(model: Transformer) -> dict[str, Any]:
    """The model's weights by a checkpoint's names: its own tensors (with adapters merged in), and quantized matrices as functions."""
    if model.config.quantization is None:
        return merged_state_dict(model)
    weights: dict[str, Any] = dict(model.named_parameters(remove_duplicate=False))
    return weights | {
        f"{place.path}.weight": QuantizedMatrix([place.layer]) for place in linear_layers(model)
    }
