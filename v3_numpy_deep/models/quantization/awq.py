"""AWQ: scale the inputs that matter up before rounding, and down again where they are written (Lin et al. 2023).

    W x = (W diag(s)) (diag(s)⁻¹ x)

The rounding error of a weight is about its group's scale, whatever the weight is. Multiplied by s_j > 1 a weight has the same error, and
divided by s_j again a smaller one; the others of its group pay a little. The inputs that matter are those with large activations
(equation 4):

    s = (mean |x|)^α,    α in 0, 1/20, … 19/20: the one with the smallest ‖W X - Ŵ X‖² (equation 5)

1/s goes into what writes x: the norm before, or the rows of another matrix. So the model stays an ordinary one, with int4's tensors.

Level 2: the same in torch. Theory: v2_handwritten/models/quantization/awq.md.

    uv run python -c "import numpy as np; from v3_numpy_deep.models.quantization.awq import *; print(scale_for(np.array([0.5, 2.0]), 0.5))"
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from shared_data.quantization.blocks import Writer
from v3_numpy_deep.autograd import Array, Module
from v3_numpy_deep.models.quantization.calibration import InputStatistics, layer_weight
from v3_numpy_deep.models.quantization.gptq import output_error
from v3_numpy_deep.models.quantization.int4 import dequantize_int4, quantize_int4

GRID = 20
SMALLEST = 1e-4  # magnitude; one of 0 would make a scale of 0


def scale_for(mean_magnitude: Float[Array, " I"], alpha: float) -> Float[Array, " I"]:
    """(mean |x|)^α, divided by the geometric mean of its largest and smallest value, so that most weights keep their size."""
    scale = np.maximum(mean_magnitude, SMALLEST) ** alpha
    return scale / np.sqrt(scale.max() * scale.min())


def scaled_rounding(
    weight: Float[Array, "O I"], scale: Float[Array, " I"], group_size: int
) -> Float[Array, "O I"]:
    """What W diag(s), rounded, computes for the inputs as they were: Q(W diag(s)) diag(s)⁻¹."""
    return dequantize_int4(quantize_int4(weight * scale, group_size), weight.dtype) / scale


def search_scale(
    weights: Sequence[Float[Array, "_ I"]], statistics: InputStatistics, group_size: int
) -> Float[Array, " I"]:
    """The scale of the grid with the smallest error of all layers that read the same input, in float64."""
    exact = np.concatenate(weights).astype(
        np.float64
    )  # rows are rounded by themselves, whichever layer they are of
    scales = [scale_for(statistics.mean_magnitude, step / GRID) for step in range(GRID)]
    errors = [
        output_error(exact, scaled_rounding(exact, scale, group_size), statistics.hessian) for scale in scales
    ]
    return scales[int(np.argmin(errors))]


def fold_scale(
    readers: Sequence[Module], writer_module: Module, writer: Writer, scale: Float[Array, " I"]
) -> None:
    """Multiply the columns of the readers by the scale and divide what writes their input by it: the model computes the same."""
    for reader in readers:
        weight = layer_weight(reader)
        weight *= scale.astype(weight.dtype)
    if writer.is_norm:
        gain = writer_module.weight.data
        offset = 1 if getattr(writer_module, "offset", False) else 0  # Gemma multiplies by 1 + weight
        gain[...] = (gain + offset) / scale.astype(gain.dtype) - offset
    else:
        rows = layer_weight(writer_module)[-writer.features :]
        rows /= scale.astype(rows.dtype)[:, None]
    if getattr(writer_module, "bias", None) is not None:
        bias = writer_module.bias.data[-writer.features :]
        bias /= scale.astype(bias.dtype)
