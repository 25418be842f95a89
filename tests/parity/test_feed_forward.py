"""Level 2 and the library: activations, and the feed-forward layers of both families."""

import pytest
import torch
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama.modeling_llama import LlamaMLP

from tests.parity.arrays import array
from tests.parity.block_checks import compare_functions, compare_modules, each_kernel, randomise
from tests.parity.model_cases import config_of, library_config
from tests.parity.recorder import ParityRecorder
from v2_handwritten.kernels import kernel
from v2_handwritten.models.blocks.feed_forward import (
    Gpt2FeedForward,
    LlamaFeedForward,
    gelu,
    gelu_new,
    silu,
)

X = torch.from_numpy(array(0, 3, 7, 10, scale=3.0))
THEIRS = {gelu_new: ACT2FN["gelu_new"], gelu: functional.gelu, silu: functional.silu}


@pytest.mark.parametrize("ours", THEIRS, ids=lambda function: function.__name__)
@each_kernel
def test_activations_and_their_derivatives_equal_the_library(
    parity: ParityRecorder, ours: object, kernels: str
) -> None:
    component = f"feed_forward, {kernels}, {ours.__name__}"
    compare_functions(parity, component, kernel(kernels, ours), lambda x: THEIRS[ours](x), {"x": X}, 3e-15)


@each_kernel
@pytest.mark.parametrize("x", [-1e4, -50.0, -0.0, 50.0, 1e4])
def test_activations_far_out_are_finite_and_so_are_their_derivatives(x: float, kernels: str) -> None:
    for function in (gelu_new, silu):
        argument = torch.tensor([x], requires_grad=True)
        y = kernel(kernels, function)(argument)
        y.backward()
        assert argument.grad is not None
        assert (y.item(), argument.grad.item()) == pytest.approx(
            (max(x, 0), float(x > 0) if x else 0.5), abs=1e-5
        )


@pytest.mark.parametrize("case", ["gpt2", "llama GQA", "llama MQA, biases, D > C/H"])
@each_kernel
def test_the_feed_forward_layer_and_all_its_gradients_equal_the_library(
    parity: ParityRecorder, case: str, kernels: str
) -> None:
    config = config_of(case)
    settings = library_config(config)
    if config.model_type == "gpt2":
        ours: torch.nn.Module = Gpt2FeedForward(config)
        theirs: torch.nn.Module = GPT2MLP(config.intermediate_size, settings)
    else:
        ours, theirs = LlamaFeedForward(config), LlamaMLP(settings)
    ours.kernels = kernels
    x = torch.from_numpy(array(7, 2, 5, config.hidden_size))
    component = f"feed_forward, {kernels}, {case}"
    compare_modules(parity, component, ours.double(), randomise(theirs.eval()), x, 1e-14)
