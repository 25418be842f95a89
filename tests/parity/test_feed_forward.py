"""Levels 1 and 2: activations, the feed-forward layers of both families, and the fused against the plain formulas."""

import pytest
import torch

from tests.parity.arrays import array
from tests.parity.block_checks import compare_functions, compare_modules, randomise
from tests.parity.model_cases import config_of
from tests.parity.recorder import ParityRecorder
from v1_quick.models.blocks import feed_forward as library
from v1_quick.models.config import ModelConfig as LibraryConfig
from v2_handwritten.models.blocks import feed_forward
from v2_handwritten.models.blocks.feed_forward import (
    Gpt2FeedForward,
    LlamaFeedForward,
    gelu,
    gelu_new,
    plain_gelu_new,
    plain_swiglu,
    silu,
    swiglu,
)

X = torch.from_numpy(array(0, 3, 7, 10, scale=3.0))


@pytest.mark.parametrize("name", ["gelu_new", "plain_gelu_new", "gelu", "silu"])
def test_activations_and_their_derivatives_equal_the_library(parity: ParityRecorder, name: str) -> None:
    ours = {"gelu_new": gelu_new, "plain_gelu_new": plain_gelu_new, "gelu": gelu, "silu": silu}[name]
    theirs = getattr(library, name.removeprefix("plain_"))
    compare_functions(parity, f"feed_forward, {name}", ours, lambda x: theirs(x), {"x": X}, 3e-15)


def test_fused_formulas_equal_the_plain_ones_in_any_chunks(
    parity: ParityRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for chunk in (1, 25, 2**17):  # less than a row; two rows and a rest; everything
        monkeypatch.setattr(feed_forward, "_CHUNK_ELEMENTS", chunk)
        for fused, plain, argument in ((gelu_new, plain_gelu_new, "x"), (swiglu, plain_swiglu, "gate_up")):
            compare_functions(
                parity,
                f"feed_forward, {fused.__name__} against plain, chunks of {chunk}",
                fused,
                plain,
                {argument: X},
                3e-15,
                levels="v2",
            )


@pytest.mark.parametrize("x", [-1e4, -50.0, -0.0, 50.0, 1e4])
def test_activations_far_out_are_finite_and_so_are_their_derivatives(x: float) -> None:
    for function in (gelu_new, silu):
        argument = torch.tensor([x], requires_grad=True)
        y = function(argument)
        y.backward()
        assert argument.grad is not None
        assert (y.item(), argument.grad.item()) == pytest.approx(
            (max(x, 0), float(x > 0) if x else 0.5), abs=1e-5
        )


@pytest.mark.parametrize("case", ["gpt2", "llama GQA", "llama MQA, biases, D > C/H"])
def test_the_feed_forward_layer_and_all_its_gradients_equal_the_library(
    parity: ParityRecorder, case: str
) -> None:
    """Also the exercise of feed_forward.md."""
    config = config_of(case)
    settings = LibraryConfig.from_hf(config.to_hf())
    if config.model_type == "gpt2":
        ours: torch.nn.Module = Gpt2FeedForward(config)
        theirs: torch.nn.Module = library.Gpt2FeedForward(config.intermediate_size, settings)
    else:
        ours, theirs = LlamaFeedForward(config), library.LlamaFeedForward(settings)
    x = torch.from_numpy(array(7, 2, 5, config.hidden_size))
    compare_modules(parity, f"feed_forward, {case}", ours.double(), randomise(theirs.eval()), x, 1e-14)
