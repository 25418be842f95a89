"""The worked examples of quantization.md, gptq.md and awq.md."""

import numpy as np
import pytest
import torch

from shared_data.quantization.config import Quantization
from shared_data.quantization.layers import stored_layer
from shared_data.quantization.packing import pack_weight
from v2_handwritten.models.quantization import awq, gptq, int4, int8

WEIGHT = torch.tensor([[0.3125, -0.75, 0.0546875, 0.1875]])  # quantization.md
COLUMNS = torch.tensor([[0.54, 0.34, 1.5, 0.0]], dtype=torch.float64)  # gptq.md


def close(actual: object, expected: object, tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance)


def test_a_row_in_8_bits() -> None:
    """absmax is 0.75, one step 0.75 / 127 = 0.005906."""
    quantized = int8.quantize_int8(WEIGHT)
    assert quantized.codes.tolist() == [[53, -127, 9, 32]]
    close(int8.dequantize_int8(quantized), [[0.3130, -0.75, 0.0531, 0.1890]], 5e-5)


def test_a_group_in_4_bits() -> None:
    """From -0.75 to 0.3125 there are 15 steps of 0.0709, and 0 is level 11."""
    quantized = int4.quantize_int4(WEIGHT, 4)
    assert quantized.codes.tolist() == [[15, 0, 12, 14]]
    assert quantized.zeros.tolist() == [[11]]
    close(quantized.scales, [[0.0709]], 5e-5)
    close(int4.dequantize_int4(quantized), [[0.2834, -0.7795, 0.0709, 0.2126]], 5e-5)
    twice = quantized.codes.repeat(1, 2).numpy()  # eight codes, for one integer
    assert pack_weight(twice).view(np.uint32).tolist() == [[0xEC0FEC0F]]


def test_an_outlier_beside_the_product_of_integers() -> None:
    quantized, x = int8.quantize_int8(WEIGHT), torch.tensor([[1.0, -0.5, 60.0, 2.0]])
    codes, scale = quantized.codes, quantized.absmax / 127
    split, together = (int8.llm_int8_linear(x, codes, scale, threshold=t) for t in (6.0, 0.0))
    close(x @ WEIGHT.T, [[4.3438]], 5e-5)
    close(int8.int8_linear(x, codes, scale), [[4.2549]], 5e-5)
    close(split, [[4.2603]], 5e-5)
    close(together, [[4.1962]], 5e-5)


def test_bits_a_weight_of_smollm2s_down_proj() -> None:
    sizes = {"I8": 1, "U8": 1, "I32": 4, "F32": 4, "F16": 2}
    bits = {}
    for name, quantization in {
        "int8": Quantization("int8"),
        "int4 128": Quantization("int4", group_size=128),
        "int4 32": Quantization("int4", group_size=32),
        "nf4": Quantization("nf4"),
    }.items():
        stored = stored_layer(576, 1536, quantization)
        size = sum(
            np.prod(each.shape) * sizes["F16" if end == "scales" else each.types[0]]
            for end, each in stored.items()
            if each.shape and end != "weight.quant_map"
        )
        bits[name] = float(8 * size / (576 * 1536))
    assert bits == pytest.approx({"int8": 8.02, "int4 128": 4.21, "int4 32": 4.68, "nf4": 4.5}, abs=5e-3)


def test_the_second_weight_makes_up_for_the_first() -> None:
    """gptq.md: two inputs that are nearly the same."""
    H = torch.eye(4, dtype=torch.float64)
    H[0, 1] = H[1, 0] = 0.9
    close(torch.linalg.inv(H)[:2, :2], [[5.263, -4.737], [-4.737, 5.263]], 5e-4)
    nearest = int4.dequantize_int4(int4.quantize_int4(COLUMNS, 4), torch.float64)
    better = int4.dequantize_int4(gptq.gptq(COLUMNS, H, 4, damping=0.0), torch.float64)
    close(nearest, [[0.5, 0.3, 1.5, 0]], 5e-4)
    close(better, [[0.5, 0.4, 1.5, 0]], 5e-4)
    close([gptq.output_error(COLUMNS, each, H) for each in (nearest, better)], [0.0061, 0.0009], 5e-5)


def test_the_factor_holds_a_row_of_every_inverse() -> None:
    """gptq.md: row i of U, divided by its diagonal, is that of the inverse of what is left after i columns."""
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    H = x.T @ x
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    for i in range(6):
        inverse = torch.linalg.inv(H[i:, i:])
        torch.testing.assert_close(U[i, i:] / U[i, i], inverse[0] / inverse[0, 0])
        torch.testing.assert_close(U[i, i] ** 2, inverse[0, 0])


def test_a_scale_for_the_input_that_matters() -> None:
    """awq.md: two inputs of mean magnitude 0.25 and 4, α = 1/2."""
    magnitude, weight = torch.tensor([0.25, 4.0]), torch.tensor([[0.75, 0.26]])
    scale = awq.scale_for(magnitude, 0.5)
    close(scale, [0.5, 2.0], 1e-7)
    plain, scaled = (awq.scaled_rounding(weight, each, 2) for each in (torch.ones(2), scale))
    close(plain, [[0.7498, 0.2499]], 5e-5)
    close(scaled, [[0.7626, 0.26]], 1e-4)
    close((plain - weight).abs() * magnitude, [[0, 0.04]], 5e-4)
    close((scaled - weight).abs() * magnitude, [[0.0031, 0]], 5e-4)
