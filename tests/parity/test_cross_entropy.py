"""Levels 1 and 2: the loss and the gradient of the logits; the version that holds the output matrix, in any chunks."""

import pytest
import torch
from torch import Tensor

from tests.parity.arrays import array, integers
from tests.parity.block_checks import compare_functions
from tests.parity.recorder import ParityRecorder
from v1_quick.models.blocks.cross_entropy import cross_entropy as library_cross_entropy
from v2_handwritten.models.blocks import cross_entropy as module
from v2_handwritten.models.blocks.cross_entropy import (
    cross_entropy,
    linear_cross_entropy,
    plain_cross_entropy,
)

V, N, C = 11, 9, 6
LOGITS = torch.from_numpy(array(0, N, V, scale=4.0))


def targets() -> Tensor:
    """Random, two of them not counted."""
    values = torch.from_numpy(integers(1, V, N))
    values[[0, 4]] = -100
    return values


@pytest.mark.parametrize("function", [plain_cross_entropy, cross_entropy])
def test_loss_and_gradient_equal_the_library(parity: ParityRecorder, function: object) -> None:
    compare_functions(
        parity,
        f"cross_entropy, {function.__name__}",
        lambda logits: function(
            logits * 1, targets()
        ),  # a fresh array, as the fused version writes into its input
        lambda logits: library_cross_entropy(logits, targets()),
        {"logits": LOGITS},
        2e-15,
    )


@pytest.mark.parametrize("chunk", [1, 4 * V, 2**18])
def test_the_fused_output_layer_equals_the_library_in_any_chunks(
    parity: ParityRecorder, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", chunk)
    inputs = {"hidden": torch.from_numpy(array(2, N, C)), "weight": torch.from_numpy(array(3, V, C))}
    compare_functions(
        parity,
        f"cross_entropy, with the output matrix, chunks of {chunk}",
        lambda hidden, weight: linear_cross_entropy(hidden, weight, targets()),
        lambda hidden, weight: library_cross_entropy(hidden @ weight.T, targets()),
        inputs,
        2e-15,
    )


def test_the_gradient_of_a_row_sums_to_zero_and_its_target_is_the_only_negative() -> None:
    """The exercise of cross_entropy.md."""
    logits = LOGITS.clone().requires_grad_()
    cross_entropy(logits * 1, targets()).backward()
    gradient = logits.grad
    assert gradient is not None
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(N).double(), atol=1e-16, rtol=0)
    for row, target in enumerate(targets().tolist()):
        negative = (gradient[row] < 0).nonzero().flatten().tolist()
        assert negative == ([] if target == -100 else [target])


def test_no_counted_target_is_a_loss_of_zero_and_not_nan() -> None:
    ignored = torch.full((N,), -100)
    hidden = torch.from_numpy(array(2, N, C)).requires_grad_()
    for loss in (
        plain_cross_entropy(LOGITS, ignored),
        cross_entropy(LOGITS, ignored),
        linear_cross_entropy(hidden, torch.from_numpy(array(3, V, C)), ignored),
    ):
        assert loss == 0


def test_logits_are_left_alone_when_nothing_needs_their_gradient() -> None:
    logits = LOGITS.clone()
    cross_entropy(logits, targets())
    assert torch.equal(logits, LOGITS)


def test_huge_logits_do_not_overflow() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    for function in (plain_cross_entropy, cross_entropy):
        assert function(logits.clone(), torch.tensor([0])) == 0
        assert function(logits.clone(), torch.tensor([1])) == 2e4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_products_keep_a_float32_loss_and_small_gradients(dtype: torch.dtype) -> None:
    N = 4096  # divided by so many targets, most of these gradients would be below float16's smallest number
    hidden, weight = torch.from_numpy(array(2, N, C)).to(dtype), torch.from_numpy(array(3, V, C)).to(dtype)
    labels = torch.from_numpy(integers(1, V, N))
    results = []
    for kind in (dtype, torch.float64):
        h, w = (x.detach().clone().to(kind).requires_grad_() for x in (hidden, weight))
        loss = linear_cross_entropy(h, w, labels)
        (loss * 4096).backward()  # what a loss scaler does
        assert h.grad is not None
        assert w.grad is not None
        results.append((loss, h.grad, w.grad))
    assert results[0][0].dtype == torch.float32
    for actual, expected in zip(*results, strict=True):
        error = (actual.double() - expected).abs().max() / expected.abs().max()
        assert error < 0.02
