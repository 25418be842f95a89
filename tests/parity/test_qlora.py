"""NF4 and QLoRA at all levels: the same codes, the same decoded values, the same products, gradients and memory."""

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.functional import create_dynamic_map, dequantize_4bit, get_4bit_type, quantize_4bit

from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from shared_data.peft import nf4
from shared_data.peft.adapted_model import merge_lora, merged_state_dict
from shared_data.peft.config import LoraConfig, QuantizationConfig
from shared_data.peft.memory import memory_bytes
from shared_data.peft.target_modules import select_layers
from tests.parity.arrays import array
from tests.parity.model_cases import CASES as MODEL_CASES
from tests.parity.model_cases import batch, pair
from tests.parity.peft_cases import (
    inject_peft,
    library_memory_bytes,
    peft_parameters,
    quantize_library,
    quantize_linear,
)
from tests.parity.recorder import ParityRecorder
from tests.parity.test_lora import adapter_values
from v2_handwritten.models.blocks.linear import Conv1D, Linear
from v2_handwritten.models.peft import qlora
from v2_handwritten.models.peft.lora import inject_lora
from v2_handwritten.models.transformer import Transformer
from v3_numpy_deep.autograd import Tensor as Tensor3
from v3_numpy_deep.models.blocks.linear import Linear as Linear3
from v3_numpy_deep.models.peft import lora as lora3
from v3_numpy_deep.models.peft import qlora as qlora3
from v3_numpy_deep.models.transformer import Transformer as Transformer3

SHAPES = {
    "whole blocks": (64, 128),
    "many scales": (700, 640),  # 7,000 of them: 27 blocks and a rest
    "a rest": (100, 70),
    "one block": (7, 8),
    "odd": (33, 65),
}
CASES = ("gpt2", "llama GQA")
RANK = 4


@pytest.fixture
def whole_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models whose rows are whole blocks: others, bitsandbytes decodes wrongly on a CPU."""
    for case in CASES:
        wide = MODEL_CASES[case] | {"hidden_size": 64, "intermediate_size": 128}
        monkeypatch.setitem(MODEL_CASES, case, wide)


def weights(kind: str, scale: float = 0.02) -> np.ndarray:
    """Normal weights with a block of zeros and an outlier."""
    x = array(len(kind), *SHAPES[kind], scale=scale, dtype=np.float32)
    x.reshape(-1)[3] = 9 * scale
    if x.size > 200:
        x.reshape(-1)[64:128] = 0
    return x


@pytest.mark.parametrize("scale", [1e-6, 0.02, 30.0])
@pytest.mark.parametrize("double", [False, True], ids=["one quantization", "double quantization"])
@pytest.mark.parametrize("kind", SHAPES)
def test_codes_and_decoded_values_are_those_of_bitsandbytes_bit_for_bit(
    parity: ParityRecorder, kind: str, double: bool, scale: float
) -> None:
    x = torch.from_numpy(weights(kind, scale))
    ours = qlora.quantize_nf4(x, double_quantization=double)
    codes, state = quantize_4bit(x, compress_statistics=double, quant_type="nf4")
    rows: dict[str, tuple[Any, Any]] = {
        "codes": (ours.codes, codes.flatten()),
        "scales": (ours.scales, state.absmax),
        "decoded": (qlora.dequantize_nf4(ours), dequantize_4bit(codes, state)),
    }
    if double:
        rows["scales of scales"] = (ours.nested_scales, state.state2.absmax)
        rows["offset"] = (ours.offset, state.offset)
    for quantity, (actual, expected) in rows.items():
        parity(
            component=f"NF4, {kind}, {'double' if double else 'once'}, weights of {scale:g}",
            quantity=quantity,
            levels="v2-v1",
            actual=actual,
            expected=expected,
            tolerance=0.0,
        )


def test_elements_on_the_border_of_two_levels_fall_to_the_side_that_bitsandbytes_chooses(
    parity: ParityRecorder,
) -> None:
    """Within a rounding error of a midpoint, it matters whether one divides by the scale or multiplies by its inverse."""
    levels = np.array(nf4.NF4_CODES, np.float32)
    scales = np.abs(array(0, 500, 1, dtype=np.float32)) + np.float32(0.01)
    borders = (levels[:-1] + levels[1:]) / 2 * scales
    around = [np.nextafter(borders, np.float32(side)) for side in (-9, 9)]
    x = np.concatenate([scales, borders, *around, np.zeros((500, 18), np.float32)], axis=1)
    divided = np.searchsorted((levels[:-1] + levels[1:]) / 2, x / scales)
    codes, _ = quantize_4bit(torch.from_numpy(x), quant_type="nf4")
    expected = torch.stack([codes >> 4, codes & 15], dim=-1).numpy().reshape(x.shape)
    assert (divided != expected).any(), "the case does not test what it should"
    for level, name, argument in ((qlora, "v2-v1", torch.from_numpy(x)), (qlora3, "v3-v1", x)):
        parity(
            component="NF4, on the border of two levels",
            quantity="codes",
            levels=name,
            actual=level.quantize_nf4(argument, double_quantization=False).codes,
            expected=codes.flatten(),
            tolerance=0.0,
        )


@pytest.mark.parametrize("double", [False, True], ids=["one quantization", "double quantization"])
@pytest.mark.parametrize("kind", SHAPES)
def test_level_3_gives_the_codes_of_level_2(parity: ParityRecorder, kind: str, double: bool) -> None:
    """The mean of the scales is a sum in another order: it may differ in its last bit, and decoded values with it."""
    x = weights(kind)
    ours = qlora3.quantize_nf4(x, double_quantization=double)
    theirs = qlora.quantize_nf4(torch.from_numpy(x), double_quantization=double)
    rows: dict[str, tuple[Any, Any, float]] = {
        "codes": (ours.codes, theirs.codes, 0.0),
        "scales": (ours.scales, theirs.scales, 0.0),
        "decoded": (qlora3.dequantize_nf4(ours), qlora.dequantize_nf4(theirs), 2e-8 if double else 0.0),
    }
    for quantity, (actual, expected, tolerance) in rows.items():
        parity(
            component=f"NF4, {kind}, {'double' if double else 'once'}",
            quantity=quantity,
            levels="v2-v3",
            actual=actual,
            expected=expected,
            tolerance=tolerance,
        )


def test_the_levels_are_those_of_the_paper_and_of_bitsandbytes(parity: ParityRecorder) -> None:
    """The exercise of qlora.md: quantiles of the normal distribution, 8 from -1 to 0 and 9 from 0 to 1, sharing the 0."""
    outermost = 0.9677083  # the quantile of the largest level, before all are divided by it
    quantile = NormalDist().inv_cdf
    negative = [-quantile(p) for p in np.linspace(outermost, 0.5, 8)[:-1]]
    positive = [quantile(p) for p in np.linspace(outermost, 0.5, 9)[:-1]]
    derived = np.array(sorted([*negative, 0.0, *positive])) / max(positive)
    for levels, quantity, expected, tolerance in (
        ("v2-v1", "16 levels", get_4bit_type("nf4", "cpu"), 1e-8),
        ("v2-derived", "16 levels", derived, 5e-7),
        ("v2-v1", "256 levels of the scales", create_dynamic_map(), 0.0),
    ):
        actual = nf4.NF4_CODES if quantity == "16 levels" else nf4.dynamic_codes()
        parity(
            component="NF4",
            quantity=quantity,
            levels=levels,
            actual=np.array(actual),
            expected=expected,
            tolerance=tolerance,
        )


def test_every_element_gets_its_nearest_level() -> None:
    x = weights("whole blocks")
    decoded = qlora.dequantize_nf4(qlora.quantize_nf4(torch.from_numpy(x), double_quantization=False)).numpy()
    scales = np.abs(x.reshape(-1, 64)).max(1).repeat(64).reshape(x.shape)
    choices = np.array(nf4.NF4_CODES, np.float32) * scales[..., None]
    nearest = np.abs(choices - x[..., None]).min(-1)
    np.testing.assert_allclose(np.abs(decoded - x), nearest, rtol=0, atol=1e-8)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_the_layer_equals_linear4bit_forward_and_backward(parity: ParityRecorder, bias: bool) -> None:
    base = Linear(128, 64, bias)
    with torch.no_grad():
        base.weight.copy_(torch.from_numpy(weights("whole blocks")))
        if base.bias is not None:
            base.bias.copy_(torch.from_numpy(array(3, 64)))
    plain = torch.nn.Linear(128, 64, bias)
    plain.load_state_dict(base.state_dict())
    theirs = quantize_linear(plain)
    base3 = Linear3(128, 64, bias).to(np.float32)
    base3.load_state_dict({name: p.numpy() for name, p in base.state_dict().items()})
    results = []
    for layer in (qlora.QuantizedLinear(base), theirs):
        x = torch.from_numpy(array(1, 2, 5, 128, dtype=np.float32)).requires_grad_()
        y = layer(x)
        y.backward(torch.from_numpy(array(2, 2, 5, 64, dtype=np.float32)))
        results.append({"output": y, "grad x": x.grad} | ({"grad bias": layer.bias.grad} if bias else {}))
    base.bias = None if base.bias is None else torch.nn.Parameter(base.bias.detach())
    layer3, x3 = qlora3.QuantizedLinear(base3), Tensor3(array(1, 2, 5, 128, dtype=np.float32), True)
    y3 = layer3(x3)
    y3.backward(array(2, 2, 5, 64, dtype=np.float32))
    results3 = {"output": y3, "grad x": x3.grad} | ({"grad bias": base3.bias.grad} if bias else {})
    for levels, ours, expected in (("v2-v1", *results), ("v2-v3", results3, results[0])):
        for quantity in expected:
            parity(
                component=f"NF4 layer, {'bias' if bias else 'no bias'}",
                quantity=quantity,
                levels=levels,
                actual=ours[quantity],
                expected=expected[quantity],
                tolerance=1e-6,
            )


@pytest.mark.usefixtures("whole_blocks")
@pytest.mark.parametrize("case", CASES)
def test_qlora_equals_peft_on_bitsandbytes(parity: ParityRecorder, case: str) -> None:
    """Whole models in float32: quantized base, trained adapters on all layers."""
    ours, theirs = pair(case, torch.float32)
    qlora.quantize_model(ours, QuantizationConfig())
    quantize_library(theirs)
    assert memory_bytes(ours) == library_memory_bytes(theirs)
    settings: dict[str, Any] = {"r": RANK, "target_modules": "all-linear"}
    inject_lora(ours, LoraConfig(**settings), seed=0)
    inject_peft(theirs, LoraConfig(**settings), seed=0)
    assert memory_bytes(ours) == library_memory_bytes(theirs)
    names, found = peft_parameters(theirs), dict(ours.named_parameters())
    with torch.no_grad():
        for seed, name in enumerate(names):
            found[name].copy_(torch.from_numpy(adapter_values(tuple(found[name].shape), seed)))
            names[name].copy_(found[name])
    inputs = batch(case, T=20)
    ours.loss(**inputs).backward()
    theirs.train()  # in evaluation, bitsandbytes computes in bfloat16 on some processors
    theirs.loss(**inputs).backward()
    assert {name for name, p in found.items() if p.grad is not None} == names.keys()
    rows = {
        "logits": (ours(inputs["input_ids"]), theirs(inputs["input_ids"])),
        "every gradient": tuple(
            torch.cat([(p[name].grad / names[name].grad.abs().max()).flatten() for name in names])
            for p in (found, names)
        ),
    }
    for quantity, (actual, expected) in rows.items():
        parity(
            component=f"QLoRA, {case}",
            quantity=quantity,
            levels="v2-v1",
            actual=actual,
            expected=expected,
            tolerance={"logits": 2e-5, "every gradient": 2e-4}[quantity],
        )


def test_bitsandbytes_decodes_rows_that_end_inside_a_block_wrongly() -> None:
    """So level 1 needs blocks that divide a layer's width. When this fails, the library has learned it: say so there."""
    x = torch.from_numpy(array(0, 64, 96, dtype=np.float32))
    codes, state = quantize_4bit(x, quant_type="nf4")
    right = qlora.dequantize_nf4(qlora.quantize_nf4(x, double_quantization=False))
    wrong_here = not torch.equal(dequantize_4bit(codes, state), right)
    assert wrong_here or torch.backends.cpu.get_cpu_capability() != "AVX512"
    state.shape = torch.Size([1, x.numel()])  # the same codes as one long row are decoded rightly
    assert torch.equal(dequantize_4bit(codes, state).view(64, 96), right)


@pytest.mark.parametrize(
    ("use_dora", "double", "tolerance"),
    [(False, False, 5e-13), (True, False, 5e-13), (False, True, 1e-5)],
    ids=["LoRA", "DoRA", "LoRA, double quantization"],
)
@pytest.mark.parametrize("case", CASES)
def test_level_3_equals_level_2_in_float64(
    parity: ParityRecorder, case: str, use_dora: bool, double: bool, tolerance: float
) -> None:
    """With double quantization, the last bit of the scales' mean (float32) is in every weight."""
    ours, _ = pair(case)
    model = Transformer3(ModelConfig(**MODEL_CASES[case])).to(np.float64)
    model.load_state_dict({name: weight.numpy() for name, weight in ours.state_dict().items()})
    qlora.quantize_model(ours, QuantizationConfig(double_quantization=double))
    qlora3.quantize_model(model, QuantizationConfig(double_quantization=double))
    settings: dict[str, Any] = {"r": RANK, "target_modules": "all-linear", "use_dora": use_dora}
    inject_lora(ours, LoraConfig(**settings), seed=0)
    lora3.inject_lora(model, LoraConfig(**settings), seed=0)
    assert memory_bytes(ours) == memory_bytes(model)
    found, found3 = dict(ours.named_parameters()), dict(model.named_parameters())
    names = [name for name, parameter in found.items() if parameter.requires_grad]
    for seed, name in enumerate(names):
        found3[name].data[...] = adapter_values(found3[name].shape, seed)
        found[name].data.copy_(torch.from_numpy(found3[name].data))
    inputs = batch(case, T=20)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    ours.loss(**inputs).backward()
    model.loss(**arrays).backward()
    rows: dict[str, tuple[Any, Any]] = {
        "logits": (model(arrays["input_ids"]), ours(inputs["input_ids"])),
        "every gradient": tuple(
            np.concatenate([np.ravel(p[name].grad / found[name].grad.abs().max().item()) for name in names])
            for p in (found3, found)
        ),
    }
    merged, merged3 = merged_state_dict(ours), merged_state_dict(model)
    assert merged.keys() == merged3.keys()
    rows["merged weights"] = tuple(
        np.concatenate([np.ravel(state[key]) for key in merged]) for state in (merged3, merged)
    )
    merge_lora(ours)
    merge_lora(model)
    rows["logits when merged"] = (model(arrays["input_ids"]), ours(inputs["input_ids"]))
    for quantity, (actual, expected) in rows.items():
        parity(
            component=f"QLoRA, {'DoRA, ' if use_dora else ''}{'double, ' if double else ''}{case}",
            quantity=quantity,
            levels="v2-v3",
            actual=actual,
            expected=expected,
            tolerance=tolerance,
        )
    plain = Transformer(ours.config).double()
    plain.load_state_dict(merged)
    torch.testing.assert_close(plain(inputs["input_ids"]), ours(inputs["input_ids"]), rtol=0, atol=1e-12)


def test_a_quantized_base_never_trains_and_keeps_gpt2s_layout() -> None:
    base = Conv1D(64, 128)
    base.weight.data.copy_(torch.from_numpy(weights("whole blocks")))
    layer = qlora.QuantizedLinear(base)
    assert {name for name, _ in layer.named_parameters()} == {"bias"}
    x = torch.from_numpy(array(1, 3, 64, dtype=np.float32))
    torch.testing.assert_close(layer(x), x @ layer.weight.T)
    assert (layer.weight.T - base.weight).abs().max() < 0.2 * base.weight.abs().max()


def test_memory_of_full_tuning_lora_and_qlora() -> None:
    """Full: 16 bytes a parameter. QLoRA: 4 bits, 8 bits for 64 weights, 32 bits for 64 · 256, and an offset a matrix."""
    model, _ = pair("llama GQA", torch.float32)
    total = sum(parameter.numel() for parameter in model.parameters())
    full = memory_bytes(model)
    assert full == {"weights": 4 * total, "gradients": 4 * total, "moments": 8 * total, "total": 16 * total}
    matrices = [place.layer.weight.numel() for place in select_layers(model, "all-linear")]
    inject_lora(model, LoraConfig(r=2), seed=0)
    adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lora = memory_bytes(model)
    assert lora["total"] == 4 * total + 16 * adapter
    model, _ = pair("llama GQA", torch.float32)
    qlora.quantize_model(model, QuantizationConfig())
    codes = sum(n // 2 + n // 64 + 4 * -(-n // (64 * 256)) + 4 for n in matrices)
    assert memory_bytes(model)["weights"] == 4 * (total - sum(matrices)) + codes
    with pytest.raises(UserError, match="already"):
        qlora.quantize_model(model, QuantizationConfig())
    frozen = memory_bytes(model)["weights"]
    inject_lora(model, LoraConfig(r=2, modules_to_save=("embed_tokens",)), seed=0)
    whole = model.config.vocab_size * model.config.hidden_size
    assert memory_bytes(model)["total"] == frozen + 16 * (adapter + whole)
    with pytest.raises(UserError, match="63"):
        QuantizationConfig(block_size=63)
