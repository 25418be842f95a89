"""AWQ: scale the inputs that matter up before rounding, and down again where they are written (Lin et al. 2023).

    W x = (W diag(s)) (diag(s)⁻¹ x)

The rounding error of a weight is about its group's scale, whatever the weight is. Multiplied by s_j > 1 a weight has the same error, and
divided by s_j again a smaller one; the others of its group pay a little. The inputs that matter are those with large activations
(equation 4):

    s = (mean |x|)^α,    α in 0, 1/20, … 19/20: the one with the smallest ‖W X - Ŵ X‖² (equation 5)

1/s goes into what writes x: the norm before, or the rows of another matrix. So the model stays an ordinary one, with int4's tensors.

Level 3: the same in NumPy, all α at once. Theory: awq.md.

    uv run python -c "import torch; from v2_handwritten.models.quantization.awq import *; print(scale_for(torch.tensor([0.5, 2.0]), 0.5))"
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shared_data.quantization.blocks import Writer
from v2_handwritten.models.quantization.calibration import InputStatistics, layer_weight
from v2_handwritten.models.quantization.gptq import output_error
from v2_handwritten.models.quantization.int4 import dequantize_int4, quantize_int4

GRID = 20
SMALLEST = 1e-4  # magnitude; one of 0 would make a scale of 0


def scale_for(mean_magnitude: Float[Tensor, " I"], alpha: float) -> Float[Tensor, " I"]:
    """(mean |x|)^α, divided by the geometric mean of its largest and smallest value, so that most weights keep their size."""
    scale = mean_magnitude.clamp(min=SMALLEST) ** alpha
    return scale / (scale.max() * scale.min()).sqrt()


def scaled_rounding(
    weight: Float[Tensor, "O I"], scale: Float[Tensor, " I"], group_size: int
) -> Float[Tensor, "O I"]:
    """What W diag(s), rounded, computes for the inputs as they were: Q(W diag(s)) diag(s)⁻¹."""
    return dequantize_int4(quantize_int4(weight * scale, group_size), weight.dtype) / scale


def search_scale(
    weights: Sequence[Float[Tensor, "_ I"]], statistics: InputStatistics, group_size: int
) -> Float[Tensor, " I"]:
    """The scale of the grid with the smallest error of all layers that read the same input, in float64."""
    best, smallest = torch.ones_like(statistics.mean_magnitude), float("inf")
    for step in range(GRID):
        scale = scale_for(statistics.mean_magnitude, step / GRID)
        error = 0.0
        for weight in weights:
            exact = weight.double()
            error += output_error(exact, scaled_rounding(exact, scale, group_size), statistics.hessian)
        if error < smallest:
            best, smallest = scale, error
    return best


@torch.no_grad()
def fold_scale(
    readers: Sequence[nn.Module], writer_module: nn.Module, writer: Writer, scale: Float[Tensor, " I"]
) -> None:
    """Multiply the columns of the readers by the scale and divide what writes their input by it: the model computes the same."""
    for reader in readers:
        weight = layer_weight(reader)
        weight *= scale.to(weight)
    module: Any = writer_module
    if writer.is_norm:
        gain = module.weight.detach()
        offset = 1 if getattr(module, "offset", False) else 0  # Gemma multiplies by 1 + weight
        gain.copy_((gain + offset) / scale.to(gain) - offset)
    else:
        rows = layer_weight(module)[-writer.features :]
        rows /= scale.to(rows).unsqueeze(1)
    if getattr(module, "bias", None) is not None:
        bias = module.bias.detach()[-writer.features :]
        bias /= scale.to(bias)
