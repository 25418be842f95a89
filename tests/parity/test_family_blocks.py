"""What Gemma 2 and gpt-oss have and Llama has not, block by block: soft caps, GEGLU, scaled embeddings, clamped experts."""

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Gemma2Config, GptOssConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP, Gemma2TextScaledWordEmbedding
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP

import v3_numpy_deep.models.blocks.clamped_experts as v3_experts
import v3_numpy_deep.models.blocks.cross_entropy as v3_loss
import v3_numpy_deep.models.log_probs as v3_log_probs
from shared_data.model_files.config import ModelConfig
from tests.parity.arrays import array, integers
from tests.parity.block_checks import compare_functions, compare_modules, each_kernel, randomise
from tests.parity.recorder import ParityRecorder
from v2_handwritten.kernels import kernel
from v2_handwritten.models.blocks.clamped_experts import ClampedMixture, clamped_swiglu
from v2_handwritten.models.blocks.cross_entropy import cross_entropy, linear_cross_entropy
from v2_handwritten.models.blocks.embeddings import TokenEmbedding
from v2_handwritten.models.blocks.feed_forward import LlamaFeedForward
from v2_handwritten.models.log_probs import linear_log_probs, selected_log_probs
from v3_numpy_deep.autograd import Parameter
from v3_numpy_deep.autograd import Tensor as ArrayTensor
from v3_numpy_deep.autograd.kernels import kernel as array_kernel

N, C, V, CAP = 600, 8, 500, 2.0  # more logits than the fused versions make at a time
HIDDEN, WEIGHT = torch.from_numpy(array(0, N, C)), torch.from_numpy(array(1, V, C))
TARGETS = torch.from_numpy(integers(2, V, N))
GPT_OSS = ModelConfig(
    model_type="gpt_oss",
    hidden_size=16,
    intermediate_size=12,
    num_local_experts=6,
    swiglu_limit=0.5,
    max_position_embeddings=32,
)


def capped(hidden: Tensor, weight: Tensor) -> Tensor:
    """As the library writes it."""
    logits = hidden @ weight.T / CAP
    return torch.tanh(logits) * CAP


@pytest.mark.parametrize("kernels", ["plain", "fused", "library"])
def test_the_loss_of_capped_logits_and_its_gradients(parity: ParityRecorder, kernels: str) -> None:
    compare_functions(
        parity,
        f"soft-capped loss, {kernels}",
        lambda hidden, weight: kernel(kernels, linear_cross_entropy)(hidden, weight, TARGETS, softcap=CAP),
        lambda hidden, weight: cross_entropy(capped(hidden, weight), TARGETS),
        {"hidden": HIDDEN, "weight": WEIGHT},
        5e-15,
    )


@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_log_probabilities_of_capped_logits_and_their_gradients(parity: ParityRecorder, kernels: str) -> None:
    compare_functions(
        parity,
        f"soft-capped log-probabilities, {kernels}",
        lambda hidden, weight: kernel(kernels, linear_log_probs)(hidden, weight, TARGETS, 0.7, CAP),
        lambda hidden, weight: selected_log_probs(capped(hidden, weight), TARGETS, 0.7),
        {"hidden": HIDDEN, "weight": WEIGHT},
        5e-15,
    )


@each_kernel
def test_level_3_caps_logits_as_level_2(parity: ParityRecorder, kernels: str) -> None:
    for name, plain, ours in (
        ("loss", v3_loss.linear_cross_entropy, linear_cross_entropy),
        ("log-probabilities", v3_log_probs.linear_log_probs, linear_log_probs),
    ):
        hidden, weight = (Parameter(value.numpy()) for value in (HIDDEN, WEIGHT))
        actual = array_kernel(kernels, plain)(hidden, weight, TARGETS.numpy(), softcap=CAP)
        tensors = [value.clone().requires_grad_() for value in (HIDDEN, WEIGHT)]
        expected = ours(*tensors, TARGETS, softcap=CAP)
        direction = np.asarray(array(3, *expected.shape))
        (actual * ArrayTensor(direction)).sum().backward()
        (expected * torch.from_numpy(direction)).sum().backward()
        parity.each(
            {
                "output": (actual, expected),
                "grad hidden": (hidden.grad, tensors[0].grad),
                "grad weight": (weight.grad, tensors[1].grad),
            },
            component=f"soft-capped {name}, {kernels}",
            levels="v3-v2",
            tolerance=5e-15,
        )


@each_kernel
def test_geglu_equals_the_library(parity: ParityRecorder, kernels: str) -> None:
    theirs = Gemma2MLP(Gemma2Config(hidden_size=16, intermediate_size=24))
    ours = LlamaFeedForward(ModelConfig(model_type="gemma2", hidden_size=16, intermediate_size=24)).double()
    ours.kernels = kernels
    x = torch.from_numpy(array(0, 2, 5, 16))
    compare_modules(parity, f"geglu, {kernels}", ours, randomise(theirs), x, 3e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_scale_of_embeddings_is_rounded_as_in_the_library(dtype: torch.dtype) -> None:
    theirs = Gemma2TextScaledWordEmbedding(9, 3072, 0, embed_scale=3072**0.5).to(dtype)  # 55.4 → 55.5
    ours = TokenEmbedding(9, 3072, 3072**0.5).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    ids = torch.arange(9)[None]
    assert torch.equal(ours(ids), theirs(ids))


def test_clamped_experts_and_their_router_equal_the_library(parity: ParityRecorder) -> None:
    theirs = randomise(GptOssMLP(GptOssConfig(**GPT_OSS.to_hf(), experts_implementation="eager")))
    ours = ClampedMixture(GPT_OSS).double()
    x = torch.from_numpy(array(0, 2, 20, 16))
    compare_modules(parity, "clamped experts", ours, theirs, x, 5e-15)
    level3 = v3_experts.ClampedMixture(GPT_OSS).to(np.float64)
    level3.load_state_dict({name: value.detach().numpy() for name, value in ours.state_dict().items()})
    parity(
        component="clamped experts",
        quantity="output",
        levels="v3-v2",
        actual=level3(ArrayTensor(x.numpy())),
        expected=ours(x),
        tolerance=5e-15,
    )


def test_what_lies_beyond_the_limit_has_no_gradient() -> None:
    gate_up = torch.tensor([9.0, 0.5, -9.0, 8.0], requires_grad=True)  # gate, up, gate, up
    y = clamped_swiglu(gate_up, 1.702, 7.0)
    y.sum().backward()
    assert y[0].item() == pytest.approx(1.5 * 7 / (1 + np.exp(-1.702 * 7)), abs=1e-5)
    assert gate_up.grad is not None
    assert [bool(gradient) for gradient in gate_up.grad] == [False, True, True, False]
