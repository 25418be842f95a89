"""Level 2: one row times a quantized matrix, as a decode step computes it, is what the layer computes; compiled or not."""

import inspect
import os
import shutil
from typing import Any

import pytest
import torch

from tests.parity.model_cases import pair
from tests.parity.recorder import ParityRecorder
from v2_handwritten.inference import quantized_matrices
from v2_handwritten.inference.decoder import Decoder
from v2_handwritten.inference.kv_cache import KVCache
from v2_handwritten.inference.quantized_matrices import has_groups_in_order, row_arguments, weight_shape
from v2_handwritten.inference.steps import CachedSteps
from v2_handwritten.kernels import quantized_row
from v2_handwritten.kernels.quantized_row import int4_row, int8_row, mixed_row, rows_of
from v2_handwritten.models.blocks.linear import Linear
from v2_handwritten.models.quantization.gptq import gptq
from v2_handwritten.models.quantization.int4 import Int4Linear, pack_int4, quantize_int4
from v2_handwritten.models.quantization.int8 import Int8Linear
from v2_handwritten.models.quantization.quantize import quantize_model

CASES = ("llama GQA", "gpt2")
GROUP_SIZE = {"int8": None, "int4": 8}


def plain_layer(out_features: int, in_features: int) -> Linear:
    generator = torch.Generator().manual_seed(out_features)
    layer = Linear(in_features, out_features, bias=False)
    layer.weight.data = torch.randn(out_features, in_features, generator=generator)
    return layer.eval()


def row_with_outliers(n: int) -> torch.Tensor:
    row = torch.randn(n, generator=torch.Generator().manual_seed(n))
    row[[1, n - 2]] = torch.tensor([7.5, -30.0])  # of 6 and more
    return row


@pytest.mark.parametrize(("out_features", "in_features"), [(8, 64), (24, 192), (16, 24)])
@pytest.mark.parametrize("is_compiled", [False, True], ids=["as it stands", "compiled"])
def test_a_row_is_what_the_layer_computes(
    parity: ParityRecorder, out_features: int, in_features: int, is_compiled: bool
) -> None:
    if is_compiled and (in_features != 192 or not shutil.which(os.environ.get("CXX", "c++"))):
        pytest.skip("one shape is compiled, where there is a C++ compiler")
    layer, row = plain_layer(out_features, in_features), row_with_outliers(in_features)
    int8, int4 = Int8Linear(layer), Int4Linear(layer, pack_int4(quantize_int4(layer.weight, 8)))
    rounded = mixed_row(row, int8.threshold)
    found = {"int8": (int8_row, rounded, int8), "int4": (int4_row, row, int4)}
    for name, (function, x, quantized) in found.items():
        # The shape checker of the tests cannot be compiled.
        products = rows_of(inspect.unwrap(function), weight_shape(quantized)) if is_compiled else None
        tensors = row_arguments(quantized)
        actual = products(x, [tensors, tensors])[:out_features] if products else function(x, *tensors)
        expected = quantized(row[None])[0]
        parity(
            component=f"one row times a quantized matrix, {name}",
            quantity="products, by the largest",
            levels="v2-v2",
            actual=actual / expected.abs().max(),
            expected=expected / expected.abs().max(),
            tolerance=3e-6,
        )


def test_a_row_of_zeros_is_no_division_by_zero() -> None:
    assert mixed_row(torch.zeros(8), 6.0).tolist() == [0.0] * 8
    assert mixed_row(torch.tensor([7.0, 0.0]), 6.0).tolist() == [7.0, 0.0]  # nothing but outliers
    assert mixed_row(torch.tensor([127.0, 1.4]), 0.0).tolist() == [
        127.0,
        1.0,
    ]  # a threshold of 0: no outliers


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models are decoded, too, and nothing is compiled."""
    monkeypatch.setattr(quantized_matrices, "FEWEST_WEIGHTS", 0)
    monkeypatch.setattr(quantized_matrices, "can_compile", lambda: True)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    for cached in (quantized_row.compiled, quantized_row.rows_of):
        cached.cache_clear()


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("scheme", "tolerance"), [("int8", 5e-6), ("int4", 5e-6)])
def test_decode_steps_give_the_logits_of_the_ordinary_pass(
    parity: ParityRecorder, case: str, scheme: str, tolerance: float
) -> None:
    """To rounding with int4. With int8 activations are rounded, and rounding noise before may bring one to its neighbour."""
    model = quantize_model(pair(case, torch.float32)[0].eval(), scheme, group_size=GROUP_SIZE[scheme])
    assert quantized_matrices.can_decode(model, 1)
    ids = torch.arange(5, 17)
    with torch.inference_mode():
        whole = model(ids[None])[0]
        cache = KVCache(model.config, 1, 32)
        model(ids[None, :4], cache=cache)
        decoder = Decoder(model, cache, torch.zeros(1, dtype=torch.long))
        steps = torch.cat([decoder.step(id[None]).clone() for id in ids[4:]])
    parity(
        component=f"decoder of a quantized model, {scheme}, {case}",
        quantity="logits, by the largest",
        levels="v2-v2",
        actual=steps / whole.abs().max(),
        expected=whole[4:] / whole.abs().max(),
        tolerance=tolerance,
    )


@torch.inference_mode()
@pytest.mark.usefixtures("uncompiled")
def test_what_is_not_decoded_so_takes_the_ordinary_pass() -> None:
    model = quantize_model(pair("llama GQA", torch.float32)[0].eval(), "int4", group_size=8)
    assert CachedSteps(model, [[1, 2]], 4).is_decoded
    assert not CachedSteps(model, [[1, 2], [3]], 4).is_decoded  # several rows
    layer: Any = model.body.layers[0].mlp.down_proj
    layer.g_idx = layer.g_idx.flip(0)  # of act_order
    assert not quantized_matrices.can_decode(model, 1)
    nf4 = quantize_model(pair("llama GQA", torch.float32)[0].eval(), "nf4")
    assert not quantized_matrices.can_decode(nf4, 1)


def test_groups_of_gptq_in_order_of_the_activations_are_noticed() -> None:
    hessian = torch.diag(torch.arange(1.0, 17.0))
    layer = plain_layer(8, 16)
    for act_order in (False, True):
        quantized = Int4Linear(layer, pack_int4(gptq(layer.weight, hessian, 8, act_order)))
        assert has_groups_in_order(quantized) is not act_order


@torch.inference_mode()
def test_without_a_compiler_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quantized_matrices, "FEWEST_WEIGHTS", 0)
    monkeypatch.setenv("CXX", "no-such-compiler")
    quantized_row.can_compile.cache_clear()
    model = quantize_model(pair("llama GQA", torch.float32)[0].eval(), "int8")
    assert not CachedSteps(model, [[1, 2]], 4).is_decoded
    assert not CachedSteps(model, [[1, 2]], 4).is_decoded
    quantized_row.can_compile.cache_clear()
    assert capsys.readouterr().err.count("there is no C++ compiler]") == 1
