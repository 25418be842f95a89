"""A model with its linear layers quantized: one function for all schemes.

    int8, nf4     each weight by itself                 int8.py, nf4.py
    int4          each weight to its nearest level      int4.py
    gptq, awq     the same tensors, chosen on calibration text so that the layers' outputs change less    gptq.py, awq.py

Level 1: the libraries' own (v1_quick/inference/quantization.py). Level 3: the same over NumPy. Theory: quantization.md.

    uv run v2 quantize --model sft --scheme gptq --out sft-gptq
"""

import sys
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from shared_data.quantization.blocks import Writer
from shared_data.quantization.config import Quantization
from shared_data.quantization.quantize import quantize_layers
from v2_handwritten.models.quantization.awq import fold_scale, search_scale
from v2_handwritten.models.quantization.calibration import (
    InputStatistics,
    calibrated_blocks,  # noqa: F401 - `quantize_layers` calls it
    layer_weight,
)
from v2_handwritten.models.quantization.gptq import gptq
from v2_handwritten.models.quantization.int4 import Int4Linear, pack_int4, quantize_int4
from v2_handwritten.models.quantization.int8 import Int8Linear
from v2_handwritten.models.quantization.nf4 import Nf4Linear
from v2_handwritten.models.transformer import Transformer

LAYERS: dict[str, Any] = {"int8": Int8Linear, "int4": Int4Linear, "nf4": Nf4Linear}


@torch.no_grad()
def quantize_model(
    model: Transformer,
    scheme: str,
    calibration: Int[Tensor, "N T"] | None = None,
    group_size: int | None = None,
) -> Transformer:
    """Quantize the linear layers of the blocks, in place; the model is returned.

    scheme: int8, int4, nf4, gptq or awq. calibration: sequences of token ids, which gptq and awq need.
    group_size: of int4, gptq and awq, a divisor of every layer's input; None: 128, fewer in narrow models.
    Raises `UserError` for an unknown scheme, a group size that does not fit, no calibration, or a model that is quantized already.
    """
    return quantize_layers(model, scheme, calibration, group_size, sys.modules[__name__])


def round_layer(layer: Any, quantization: Quantization) -> Any:
    """The layer with each weight rounded to its nearest level."""
    if quantization.format != "int4":
        return LAYERS[quantization.format](layer)
    return Int4Linear(layer, pack_int4(quantize_int4(layer_weight(layer), quantization.group_size)))


def gptq_layer(layer: Any, statistics: InputStatistics, quantization: Quantization) -> Int4Linear:
    """The layer with the codes that GPTQ chooses."""
    quantized = gptq(layer_weight(layer), statistics.hessian, quantization.group_size)
    return Int4Linear(layer, pack_int4(quantized))


def move_scale(
    readers: list[Any], module: Any, writer: Writer, statistics: InputStatistics, quantization: Quantization
) -> None:
    """AWQ's scale of an input, from the module that writes it into the layers that read it."""
    weights = [layer_weight(layer) for layer in readers]
    fold_scale(readers, module, writer, search_scale(weights, statistics, quantization.group_size))
