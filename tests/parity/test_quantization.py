"""Quantized weights and layers: int8 as bitsandbytes, int4 as torchao's affine scheme, packed as GPTQ's checkpoints; levels 2 and 3 alike."""

from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.functional import int8_vectorwise_quant
from bitsandbytes.nn import Int8Params, Linear8bitLt
from torchao.quantization.quant_primitives import (
    MappingType,
    choose_qparams_affine,
    dequantize_affine,
    quantize_affine,
)

from shared_data.peft.target_modules import linear_layers
from shared_data.quantization.layers import quantized_layers
from shared_data.quantization.packing import (
    pack,
    pack_weight,
    pack_zeros,
    unpack,
    unpack_weight,
    unpack_zeros,
)
from tests.parity.arrays import array, integers
from tests.parity.family_cases import CASES as FAMILY_CASES
from tests.parity.family_cases import config_of
from tests.parity.recorder import ParityRecorder
from v2_handwritten.models.blocks.linear import Linear
from v2_handwritten.models.quantization import int4, int8
from v2_handwritten.models.transformer import Transformer
from v3_numpy_deep.autograd import Tensor as Tensor3
from v3_numpy_deep.models.blocks.linear import Linear as Linear3
from v3_numpy_deep.models.quantization import int4 as int4_3
from v3_numpy_deep.models.quantization import int8 as int8_3

O, I = 24, 64  # noqa: E741 - out and in


def weights(rows: int = O, columns: int = I) -> np.ndarray:
    """Normal weights with an outlier, a row of zeros, and a group of positive numbers only."""
    x = array(0, rows, columns, scale=0.05, dtype=np.float32)
    x[0, 3], x[2] = 0.9, 0
    x[5, :16] = np.abs(x[5, :16]) + 0.01
    return x


def activations(rows: int) -> np.ndarray:
    """Inputs of which two columns have outliers, one of them in a single row."""
    x = array(1, rows, I, dtype=np.float32)
    x[:, 7] *= 9
    x[0, 20] = -40
    return x


def test_int8_codes_and_scales_are_those_of_bitsandbytes(parity: ParityRecorder) -> None:
    x = weights(200, 300)
    codes, absmax, _ = int8_vectorwise_quant(torch.from_numpy(x).half())
    codes[2] = 0  # the library divides a row of zeros by 0
    for levels, ours in (
        ("v2-v1", int8.quantize_int8(torch.from_numpy(x))),
        ("v3-v1", int8_3.quantize_int8(x)),
    ):
        pairs: dict[str, tuple[Any, Any]] = {"codes": (ours.codes, codes), "absmax": (ours.absmax, absmax)}
        parity.each(pairs, component="int8", levels=levels, tolerance=0.0)


@pytest.mark.parametrize("threshold", [6.0, 0.0], ids=["outliers apart", "no split"])
@pytest.mark.parametrize("rows", [1, 5], ids=["one row", "five rows"])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_the_int8_layer_equals_linear8bitlt(
    parity: ParityRecorder, training: bool, rows: int, threshold: float
) -> None:
    x, bias = activations(rows), array(2, O, dtype=np.float32)
    weight = weights() + np.float32(1e-4)  # without the row of zeros
    library = Linear8bitLt(I, O, has_fp16_weights=False, threshold=threshold)
    library.weight = Int8Params(torch.from_numpy(weight), requires_grad=False).to("cpu")
    library.bias = torch.nn.Parameter(torch.from_numpy(bias))
    ours, deep = Linear(I, O), Linear3(I, O)
    ours.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    deep.load_state_dict({"weight": weight, "bias": bias})
    layers = (
        int8.Int8Linear(ours, threshold=threshold).train(training),
        int8_3.Int8Linear(deep, threshold=threshold).train(training),
    )
    expected = library.train(training)(torch.from_numpy(x).view(1, rows, I))[0]
    outputs = (layers[0](torch.from_numpy(x)), layers[1](Tensor3(x)))
    for levels, actual in zip(("v2-v1", "v3-v1"), outputs, strict=True):
        parity(
            component=f"int8 layer, {'training' if training else 'evaluation'}, threshold {threshold:g}, {rows} rows",
            quantity="output",
            levels=levels,
            actual=actual,
            expected=expected,
            # On a CPU the library multiplies by 6.200124e-05 for 1 / 127² = 6.2000124e-05.
            tolerance=1e-6 if training else 5e-5,
        )


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_int8_layer_sums_codes_in_float32(dtype: torch.dtype, training: bool) -> None:
    """A sum of products of codes leaves the range of float16, and bfloat16 does not hold its digits."""
    layer, x = Linear(256, 8, bias=False), torch.full((2, 256), 3.0)
    layer.weight.data.fill_(0.5)
    quantized = int8.Int8Linear(layer.to(dtype)).train(training)
    y = quantized(x.to(dtype))
    assert y.dtype == dtype
    assert torch.allclose(y.float(), torch.full((2, 8), 384.0), rtol=1e-3)


def test_outliers_cost_their_row_unless_they_stay_apart() -> None:
    """The exercise of quantization.md: with the split, the rest of the row keeps its resolution."""
    x, layer = torch.from_numpy(activations(5)), Linear(I, O, bias=False)
    layer.weight.data.copy_(torch.from_numpy(weights()))
    split = int8.Int8Linear(layer).eval()
    exact = int8.int8_linear(x, split.codes, split.scale)
    errors = [
        float((int8.llm_int8_linear(x, split.codes, split.scale, threshold=t) - exact).abs().mean())
        for t in (6.0, 0.0)
    ]
    assert errors[0] < errors[1] / 3


@pytest.mark.parametrize("group_size", [8, 16, 64])
def test_int4_codes_scales_and_values_are_those_of_torchao(parity: ParityRecorder, group_size: int) -> None:
    x, blocks = torch.from_numpy(weights()), (1, group_size)
    scale, zero = choose_qparams_affine(
        x, MappingType.ASYMMETRIC, blocks, torch.uint8, 0, 15, eps=2.0**-24, scale_dtype=torch.float16
    )
    codes = quantize_affine(x, blocks, scale.float(), zero, torch.uint8, 0, 15)
    values = dequantize_affine(codes, blocks, scale.float(), zero, torch.uint8, 0, 15)
    ours, deep = int4.quantize_int4(x, group_size), int4_3.quantize_int4(x.numpy(), group_size)
    for levels, quantized, decoded in (
        ("v2-v1", ours, int4.dequantize_int4(ours)),
        ("v3-v1", deep, int4_3.dequantize_int4(deep)),
    ):
        pairs = {
            "codes": (quantized.codes, codes),
            "scales": (quantized.scales, scale.view(O, -1)),
            "zero points": (quantized.zeros, zero.view(O, -1)),
            "values": (decoded, values),
        }
        parity.each(pairs, component=f"int4, groups of {group_size}", levels=levels, tolerance=0.0)


def test_codes_are_packed_by_eights_the_first_in_the_lowest_bits() -> None:
    assert pack(np.array([[1, 2, 3, 4, 5, 6, 7, 8]])).tolist() == [[0x87654321 - 2**32]]
    codes = integers(0, 16, O, I).astype(np.uint8)
    np.testing.assert_array_equal(unpack(pack(codes)), codes)
    qweight = pack_weight(codes)
    assert qweight.shape == (I // 8, O)
    assert int(qweight.view(np.uint32)[2, 5]) >> 12 & 15 == codes[5, 19], "input 8 · 2 + 3 of output 5"
    np.testing.assert_array_equal(unpack_weight(qweight), codes)
    zeros = integers(1, 16, O, 4).astype(np.uint8)
    for shifted in (True, False):
        packed = pack_zeros(zeros, shifted)
        assert packed.shape == (4, O // 8)
        assert int(packed.view(np.uint32)[3, 1]) >> 8 & 15 == (zeros[10, 3] - shifted) % 16
        np.testing.assert_array_equal(unpack_zeros(packed, shifted), zeros)


@pytest.mark.parametrize("shifted", [True, False], ids=["gptq", "gptq_v2"])
@pytest.mark.parametrize("act_order", [False, True])
def test_a_packed_layer_decodes_as_gptqs_checkpoints_say(shifted: bool, act_order: bool) -> None:
    """w[o, i] = (code - zero of the group of i) · scale of the group of i, written out for each element."""
    quantized = int4_3.quantize_int4(weights(), 16)
    if act_order:
        quantized.g_idx = np.random.default_rng(0).permutation(quantized.g_idx).astype(np.int32)
    packed = int4_3.pack_int4(quantized) | {"qzeros": pack_zeros(quantized.zeros, shifted)}
    expected = np.empty((O, I), np.float32)
    for o, i in np.ndindex(O, I):
        g = packed["g_idx"][i]
        code = packed["qweight"].view(np.uint32)[i // 8, o] >> np.uint32(4 * (i % 8)) & 15
        zero = (packed["qzeros"].view(np.uint32)[g, o // 8] >> np.uint32(4 * (o % 8)) & 15) + shifted
        expected[o, i] = (int(code) - int(zero) % 16) * np.float32(packed["scales"][g, o])
    tensors = {name: torch.from_numpy(each) for name, each in packed.items()}
    x = activations(3)
    for layer, value in (
        (int4.Int4Linear(Linear(I, O, bias=False), tensors, shifted), torch.from_numpy(x)),
        (int4_3.Int4Linear(Linear3(I, O, bias=False), packed, shifted), Tensor3(x)),
    ):
        np.testing.assert_array_equal(np.asarray(layer.weight.data), expected)
        output = layer(value)
        output = output.data if isinstance(output, Tensor3) else output.detach().numpy()
        np.testing.assert_allclose(output, x @ expected.T, atol=2e-5)


@pytest.mark.parametrize("case", FAMILY_CASES)
def test_the_layers_of_a_configuration_are_those_of_the_model(case: str) -> None:
    config = config_of(case)
    with torch.device("meta"):
        model = Transformer(config)
    places = {
        place.path: tuple(place.layer.weight.shape[:: -1 if config.model_type == "gpt2" else 1])
        for place in linear_layers(model)
    }
    assert quantized_layers(config) == places


def test_gradients_pass_through_a_quantized_layer_to_adapters(parity: ParityRecorder) -> None:
    """In training only the weight is rounded, so dx = dy Ŵ."""
    base, base3 = Linear(I, O), Linear3(I, O)
    base.weight.data.copy_(torch.from_numpy(weights()))
    base3.load_state_dict({name: value.numpy() for name, value in base.state_dict().items()})
    dy = array(3, 4, O, dtype=np.float32)
    pairs = {
        "int8": (int8.Int8Linear(base), int8_3.Int8Linear(base3)),
        "int4": (
            int4.Int4Linear(base, int4.pack_int4(int4.quantize_int4(base.weight, 16))),
            int4_3.Int4Linear(base3, int4_3.pack_int4(int4_3.quantize_int4(base3.weight.data, 16))),
        ),
    }
    for name, (layer, layer3) in pairs.items():
        x, x3 = torch.from_numpy(activations(4)).requires_grad_(), Tensor3(activations(4), True)
        layer.train()(x).backward(torch.from_numpy(dy))
        layer3.train()(x3).backward(dy)
        for levels, actual in (("v2-formula", x.grad), ("v3-formula", x3.grad)):
            parity(
                component=f"{name} layer",
                quantity="grad x",
                levels=levels,
                actual=actual,
                expected=dy @ layer.weight.detach().numpy(),
                tolerance=1e-6,
            )
