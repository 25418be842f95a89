"""GPTQ and AWQ against the papers' formulas in plain float64, and level 2 against level 3."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from shared_data.peft.target_modules import linear_layers
from shared_data.quantization.blocks import input_groups, writer_of
from shared_data.quantization.layers import choose_group_size, quantized_layers
from tests.parity.arrays import array, integers
from tests.parity.family_cases import CASES as FAMILY_CASES
from tests.parity.family_cases import config_of as family_config
from tests.parity.model_cases import CASES, config_of
from tests.parity.recorder import ParityRecorder
from v2_handwritten.models.quantization import awq, calibration, gptq, int4
from v2_handwritten.models.quantization.quantize import quantize_model
from v2_handwritten.models.transformer import Transformer, new_model
from v3_numpy_deep.models.quantization import awq as awq3
from v3_numpy_deep.models.quantization import calibration as calibration3
from v3_numpy_deep.models.quantization import gptq as gptq3
from v3_numpy_deep.models.quantization import int4 as int4_3
from v3_numpy_deep.models.quantization.quantize import quantize_model as quantize_model3
from v3_numpy_deep.models.transformer import Transformer as Transformer3

O, I, GROUP = 12, 160, 32  # noqa: E741 - out and in; more than one block of 128 columns
DEAD = 9  # an input that is always 0
QUANTIZED_CASES: dict[str, dict[str, Any]] = {
    "gpt2": CASES["gpt2"],
    "llama MHA, untied": CASES["llama MHA, untied"],
    "llama GQA, biases": CASES["llama GQA"] | {"attention_bias": True, "mlp_bias": True},
}


def inputs(rows: int = 400) -> np.ndarray:
    """Correlated activations, some features much larger than others, one always 0."""
    x = array(0, rows, I) @ (np.eye(I) + 0.3 * array(1, I, I) / np.sqrt(I)) * np.exp(array(2, I))
    x[:, DEAD] = 0
    return x


def float64_model(case: str) -> tuple[Transformer, Transformer3]:
    """A model of both levels in float64, its norms and biases not 1 and 0."""
    config = ModelConfig(**QUANTIZED_CASES[case])
    ours = new_model(config, 0).double()
    with torch.no_grad():
        for seed, parameter in enumerate(p for p in ours.parameters() if p.ndim == 1):
            parameter += torch.from_numpy(array(seed, *parameter.shape, scale=0.1))
    deep = Transformer3(config).to(np.float64)
    deep.load_state_dict({name: weight.numpy() for name, weight in ours.state_dict().items()})
    return ours.eval(), deep.eval()


def solved_by_columns(weight: np.ndarray, H: np.ndarray, group_size: int, order: np.ndarray) -> np.ndarray:
    """The layer-wise problem as it is: after each column is rounded, the rest solves its normal equations anew.

    Of min ‖(w - ŵ) X‖² with ŵ fixed in the columns R, the others are w_F + (w_R - ŵ_R) H_RF H_FF⁻¹.
    """
    W, H = weight[:, order].copy(), H[np.ix_(order, order)]
    rounded, left = np.zeros_like(W), W.copy()
    for i in range(I):
        if i % group_size == 0:
            group = left[:, i : i + group_size]
            low, high = np.minimum(group.min(1), 0), np.maximum(group.max(1), 0)
            scale = np.maximum((high - low) / 15, 2.0**-24)
            zero = np.clip(np.rint(-low / scale), 0, 15)
            scale = scale.astype(np.float32).astype(np.float16).astype(np.float64)
        code = np.clip(np.rint(left[:, i] / scale) + zero, 0, 15)
        rounded[:, i] = (code - zero) * scale
        done, rest = slice(0, i + 1), slice(i + 1, I)
        change = (W[:, done] - rounded[:, done]) @ H[done, rest]
        left[:, rest] = W[:, rest] + np.linalg.solve(H[rest, rest], change.T).T
    result = np.empty_like(rounded)
    result[:, order] = rounded
    return result


@pytest.mark.parametrize("act_order", [False, True], ids=["in order", "largest first"])
def test_gptq_solves_the_layer_wise_problem_column_by_column(parity: ParityRecorder, act_order: bool) -> None:
    """Level 2 by a Cholesky factor and in blocks, level 3 by elimination, the reference by solving anew each time."""
    weight, x = array(3, O, I, scale=0.1), inputs()
    H = x.T @ x
    ours = gptq.gptq(torch.from_numpy(weight), torch.from_numpy(H), GROUP, act_order)
    deep = gptq3.gptq(weight, H, GROUP, act_order)
    damped = H + np.diag(0.01 * np.diagonal(H).mean() + (np.diagonal(H) == 0))
    order = np.argsort(-np.diagonal(H), kind="stable") if act_order else np.arange(I)
    live = weight.copy()
    live[:, DEAD] = 0
    expected = solved_by_columns(live, damped, GROUP, order)
    rows: dict[str, tuple[Any, Any]] = {
        "v2-formula": (int4.dequantize_int4(ours, torch.float64), expected),
        "v3-formula": (int4_3.dequantize_int4(deep, np.float64), expected),
        "v2-v3": (ours.codes, deep.codes),
    }
    for levels, (actual, wanted) in rows.items():
        quantity = "codes" if levels == "v2-v3" else "values"
        component = f"GPTQ, {'largest input first' if act_order else 'inputs in order'}"
        parity(
            component=component,
            quantity=quantity,
            levels=levels,
            actual=actual,
            expected=wanted,
            tolerance=0.0,
        )
    np.testing.assert_array_equal(ours.g_idx.numpy(), deep.g_idx)
    assert np.bincount(deep.g_idx).tolist() == [GROUP] * (I // GROUP)


def test_gptqs_outputs_are_nearer_than_those_of_rounding(parity: ParityRecorder) -> None:
    weight, x = array(3, O, I, scale=0.1), inputs()
    H = x.T @ x
    found = {
        "GPTQ": gptq3.gptq(weight, H, GROUP),
        "largest first": gptq3.gptq(weight, H, GROUP, act_order=True),
        "nearest": int4_3.quantize_int4(weight, GROUP),
    }
    values = {name: int4_3.dequantize_int4(each, np.float64) for name, each in found.items()}
    errors = {name: gptq3.output_error(weight, each, H) for name, each in values.items()}
    direct = {name: ((x @ (weight - each).T) ** 2).sum() for name, each in values.items()}
    for level, error in (("v3-formula", errors["GPTQ"]), ("v2-formula", None)):
        actual = error or gptq.output_error(*map(torch.from_numpy, (weight, values["GPTQ"], H)))
        parity(
            component="output error of a layer",
            quantity="‖(W - Ŵ) X‖²",
            levels=level,
            actual=np.array(actual),
            expected=np.array(direct["GPTQ"]),
            tolerance=3e-15,
        )
    assert direct["GPTQ"] < 0.8 * direct["nearest"]
    assert direct["largest first"] < 0.8 * direct["nearest"]


def test_awqs_scale_is_the_best_of_the_grid_on_the_inputs_themselves(parity: ParityRecorder) -> None:
    """Equation 5 on X, where the levels compute with Σ x xᵀ."""
    x, weights = inputs(), [array(seed, rows, I, scale=0.1) for seed, rows in ((4, O), (5, 7))]
    statistics, statistics3 = calibration.InputStatistics(I), calibration3.InputStatistics(I)
    statistics.add(torch.from_numpy(x).view(4, 100, I))
    statistics3.add(calibration3.Tensor(x))
    magnitude = np.maximum(np.abs(x).mean(0), 1e-4)
    errors, scales = [], []
    for step in range(20):
        scale = magnitude ** (step / 20)
        scale = scale / np.sqrt(scale.max() * scale.min())
        error = 0.0
        for weight in weights:
            groups = (weight * scale).reshape(-1, GROUP)
            low, high = np.minimum(groups.min(1), 0), np.maximum(groups.max(1), 0)
            step_size = (high - low) / 15
            zero = np.rint(-low / step_size)[:, None]
            step_size = step_size.astype(np.float32).astype(np.float16).astype(np.float64)[:, None]
            rounded = (np.clip(np.rint(groups / step_size) + zero, 0, 15) - zero) * step_size
            error += ((x @ (weight - rounded.reshape(weight.shape) / scale).T) ** 2).sum()
        errors.append(error)
        scales.append(scale)
    expected = scales[int(np.argmin(errors))]
    assert int(np.argmin(errors)) > 0, "the case does not test what it should"
    found = awq.search_scale([torch.from_numpy(each) for each in weights], statistics, GROUP)
    for levels, actual in (
        ("v2-formula", found),
        ("v3-formula", awq3.search_scale(weights, statistics3, GROUP)),
    ):
        parity(
            component="AWQ",
            quantity="scale",
            levels=levels,
            actual=actual,
            expected=expected,
            tolerance=1e-14,
        )


FOLDED = [*CASES, *(case for case in FAMILY_CASES if case.split(",")[0] in ("gemma2", "qwen2", "qwen3"))]


@pytest.mark.parametrize("case", FOLDED)
def test_moving_a_scale_changes_no_output(parity: ParityRecorder, case: str) -> None:
    config = config_of(case) if case in CASES else family_config(case)
    model = new_model(config, 0).double().eval()
    ids = torch.from_numpy(integers(0, config.vocab_size, 2, 12))
    with torch.no_grad():
        before = model(ids)
        modules, folded = dict(model.named_modules()), 0
        for paths in (group for block in input_groups(config) for group in block):
            writer = writer_of(config, paths[0])
            if writer is not None:
                features = quantized_layers(config)[paths[0]][1]
                scale = torch.from_numpy(np.exp(array(folded, features)))
                awq.fold_scale([modules[path] for path in paths], modules[writer.path], writer, scale)
                folded += 1
        assert folded >= 3 * config.num_hidden_layers
        parity(
            component=f"AWQ, {case}",
            quantity="logits after folding",
            levels="v2-v2",
            actual=model(ids),
            expected=before,
            tolerance=5e-14,
        )


def test_calibration_counts_what_each_layer_reads(parity: ParityRecorder) -> None:
    """Σ x xᵀ of a whole pass, where documents begin anew at the token that begins one."""
    ours, deep = float64_model("llama MHA, untied")
    object.__setattr__(ours.config, "bos_token_id", 3)
    object.__setattr__(deep.config, "bos_token_id", 3)
    ids = integers(0, 96, 10, 16)
    ids[:, 5] = 3
    seen: list[torch.Tensor] = []
    handle = ours.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    packing = calibration.Packing.from_documents(torch.from_numpy(ids == 3).long().cumsum(-1))
    with torch.no_grad():
        ours.hidden_states(torch.from_numpy(ids), packing.positions(), packing)
    handle.remove()
    rows = seen[0].flatten(0, 1)
    for levels, blocks in (
        ("v2-formula", calibration.calibrated_blocks(ours, torch.from_numpy(ids))),
        ("v3-formula", calibration3.calibrated_blocks(deep, ids)),
    ):
        paths, statistics = list(blocks)[1][-1]
        assert paths == ["model.layers.1.mlp.down_proj"]
        pairs: dict[str, tuple[Any, Any]] = {
            "Σ x xᵀ": (statistics.hessian, rows.T @ rows),
            "mean |x|": (statistics.mean_magnitude, rows.abs().mean(0)),
        }
        parity.each(pairs, component="calibration", levels=levels, tolerance=1e-14)


@pytest.mark.parametrize("scheme", ["int8", "int4", "nf4", "gptq", "awq"])
@pytest.mark.parametrize("case", QUANTIZED_CASES)
def test_levels_2_and_3_quantize_a_model_alike(parity: ParityRecorder, case: str, scheme: str) -> None:
    ours, deep = float64_model(case)
    group_size = None if scheme in ("int8", "nf4") else 16
    ids = integers(0, 96, 12, 20)
    quantize_model(ours, scheme, torch.from_numpy(ids), group_size)
    quantize_model3(deep, scheme, ids, group_size)
    assert ours.config == deep.config
    assert ours.config.quantization is not None
    assert ours.config.quantization.name == scheme
    places, places3 = ({place.path: place.layer for place in linear_layers(each)} for each in (ours, deep))
    assert places.keys() == places3.keys() == quantized_layers(ours.config).keys()
    for path, layer in places.items():
        tensors, tensors3 = layer.tensors(), places3[path].tensors()
        assert tensors.keys() == tensors3.keys()
        for name in tensors:
            if not name.endswith("__nf4"):
                np.testing.assert_array_equal(tensors[name].numpy(), tensors3[name], err_msg=f"{path}.{name}")
    with torch.no_grad():
        parity(
            component=f"{scheme}, {case}",
            quantity="logits",
            levels="v2-v3",
            actual=deep(ids[:2]),
            expected=ours(torch.from_numpy(ids[:2])),
            tolerance=5e-14,
        )


@pytest.mark.parametrize("case", ["mixtral", "deepseek_v3"])
def test_experts_stay_as_they_are_and_latents_are_calibrated(case: str) -> None:
    """Matrices of experts are no linear layers; the key-value matrix of latent attention is."""
    config = family_config(case)
    if config.kv_lora_rank:  # rows by eights
        config = replace(config, qk_rope_head_dim=8, moe_intermediate_size=24)
    model, ids = new_model(config, 0).eval(), torch.from_numpy(integers(0, 96, 4, 16))
    before = model(ids[:1]).detach()
    with pytest.raises(UserError, match=r"AWQ folds its scales .*; choose --scheme gptq or int4"):
        quantize_model(model, "awq", ids, 4)
    quantize_model(model, "gptq", ids, 8)
    change = (model(ids[:1]).detach() - before).abs().mean() / before.abs().mean()
    assert 0 < change < 0.5


def test_what_cannot_be_quantized_is_one_line() -> None:
    config = config_of("llama GQA")
    ids = torch.zeros(1, 4, dtype=torch.int64)
    for scheme, group_size, calibrated, says in (
        ("int3", None, ids, r"there is no scheme 'int3'; choose one of int8, int4, nf4, gptq, awq"),
        ("int4", 20, ids, r"groups of 20 do not divide the layers' inputs of 32, 48; choose --group-size 16"),
        ("int8", 16, ids, r"int8 has no groups; leave --group-size out"),
        ("gptq", None, None, r"gptq needs calibration text; pass some, or choose int4"),
    ):
        with pytest.raises(UserError, match=says):
            quantize_model(new_model(config, 0), scheme, calibrated, group_size)
    model = quantize_model(new_model(config, 0), "int8")
    with pytest.raises(UserError, match=r"the model is quantized already \(int8\); quantize the plain model"):
        quantize_model(model, "int4")


def test_narrow_models_get_small_groups() -> None:
    """The largest of 128, 64, 32, 16 that divides all inputs and is at most a quarter of the narrowest."""
    sizes = {(512, 1024): 128, (576, 1536): 64, (128, 256): 32, (32, 48): 8}
    for (hidden, feed_forward), expected in sizes.items():
        config = ModelConfig(hidden_size=hidden, intermediate_size=feed_forward)
        assert choose_group_size(config, None) == expected
