"""Level 2 and the library: the whole model of both families, in logits, loss and every gradient."""

import numpy as np
import pytest
import torch

from tests.parity.block_checks import each_kernel
from tests.parity.model_cases import CASES, batch, config_of, gradients, packed, pair
from tests.parity.recorder import ParityRecorder
from v2_handwritten.models.transformer import Transformer

# Ten times the measured errors, at most. GPT-2 has no float32 island in the library; Llama has: its norms, softmax and
# rotary tables compute in float32 whatever the model's type, so float64 gains nothing there.
TOLERANCES = {
    "gpt2 float32": {"logits": 4e-6, "loss": 5e-7, "every gradient": 1e-5},
    "gpt2 float64": {"logits": 5e-15, "loss": 2e-15, "every gradient": 2e-14},
    "llama float32": {"logits": 1e-5, "loss": 5e-7, "every gradient": 2e-5},
    "llama float64": {"logits": 1e-5, "loss": 1e-7, "every gradient": 2e-5},
}


def relative(all_gradients: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> np.ndarray:
    """All gradients in a row, each divided by the largest element of the expected one: none is too small to count."""
    assert all_gradients.keys() == expected.keys()
    return np.concatenate([(all_gradients[name] / expected[name].abs().max()).flatten() for name in expected])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("packing", [False, True], ids=["one document", "packed"])
@each_kernel
def test_logits_loss_and_every_gradient_equal_the_library_model(
    parity: ParityRecorder, case: str, dtype: torch.dtype, packing: bool, kernels: str
) -> None:
    ours, library = pair(case, dtype)
    ours.kernels = kernels
    inputs = batch(case) | (packed([[30, 40], [66, 4]]) if packing else {})
    kind = f"{case.split()[0]} {str(dtype).removeprefix('torch.')}"
    component = f"transformer, {kernels}, {case}{', packed' if packing else ''}"

    loss, expected_loss = ours.loss(**inputs), library.loss(**inputs)
    loss.backward()
    expected_loss.backward()
    inputs.pop("labels")
    with torch.no_grad():
        logits, expected_logits = ours(**inputs), library(**inputs)
    theirs = gradients(library)
    for quantity, actual, expected in (
        ("logits", logits, expected_logits),
        ("loss", loss, expected_loss),
        ("every gradient", relative(gradients(ours), theirs), relative(theirs, theirs)),
    ):
        parity(
            component=component,
            quantity=quantity,
            levels="v2-v1",
            actual=actual,
            expected=expected,
            tolerance=TOLERANCES[kind][quantity],
        )


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_state_dict_has_the_library_names_and_shapes(case: str) -> None:
    ours, library = pair(case)
    expected = {name: tensor.shape for name, tensor in library.library.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == expected


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_left_padding_gives_the_logits_of_the_library(parity: ParityRecorder, case: str) -> None:
    ours, library = pair(case)
    ids = batch(case)["input_ids"]
    attention_mask = torch.ones_like(ids)
    attention_mask[0, :9] = 0
    position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = ours(ids, position_ids, attention_mask=attention_mask)
        expected = library(ids, position_ids, attention_mask=attention_mask)
    assert logits.isfinite().all()
    real = attention_mask.bool()
    parity(
        component=f"transformer, {case}",
        quantity="logits with left padding",
        levels="v2-v1",
        actual=logits[real],
        expected=expected[real],
        tolerance=TOLERANCES[f"{case.split()[0]} float64"]["logits"],
    )


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_all_kernels_and_gradient_checkpointing_give_the_same_gradients(case: str) -> None:
    config, inputs = config_of(case), batch(case) | packed([[30, 40], [66, 4]])

    def run(**attributes: object) -> list[torch.Tensor]:
        model = Transformer(config).initialize(0).double()
        for name, value in attributes.items():
            setattr(model, name, value)
        model.loss(**inputs).backward()
        return list(gradients(model).values())

    expected = run()
    for kernels in ("plain", "library"):
        for actual, want in zip(run(kernels=kernels), expected, strict=True):
            torch.testing.assert_close(actual, want, rtol=0, atol=1e-12)
    for actual, want in zip(run(gradient_checkpointing=True), expected, strict=True):
        assert torch.equal(actual, want)


def test_mixed_precision_stays_near_float32_and_leaves_the_parameters_alone() -> None:
    inputs = batch("llama GQA") | packed([[30, 40], [66, 4]])
    ours, _ = pair("llama GQA", torch.float32)
    expected = ours.loss(**inputs)
    ours.compute_dtype = torch.bfloat16
    loss = ours.loss(**inputs)
    loss.backward()
    assert loss.dtype == torch.float32
    assert 0 < abs(loss - expected) < 0.05 * expected  # bfloat16 has 8 bits: a difference there must be
    assert all(gradient.dtype == torch.float32 for gradient in gradients(ours).values())
