"""Level 2 and the library: the loss and the gradients of the logits, or of what they are made of."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.parity.arrays import array, integers
from tests.parity.block_checks import compare_functions, each_kernel
from tests.parity.recorder import ParityRecorder
from v2_handwritten.kernels import kernel
from v2_handwritten.models.blocks.cross_entropy import cross_entropy, linear_cross_entropy

V, N, C = 11, 9, 6
LOGITS = torch.from_numpy(array(0, N, V, scale=4.0))
HIDDEN, WEIGHT = torch.from_numpy(array(2, N, C)), torch.from_numpy(array(3, V, C))


def targets() -> Tensor:
    """Random, two of them not counted."""
    values = torch.from_numpy(integers(1, V, N))
    values[[0, 4]] = -100
    return values


def test_loss_and_gradient_of_the_logits_equal_the_library(parity: ParityRecorder) -> None:
    compare_functions(
        parity,
        "cross_entropy",
        lambda logits: cross_entropy(logits, targets()),
        lambda logits: functional.cross_entropy(logits, targets()),
        {"logits": LOGITS},
        2e-15,
    )


@each_kernel
def test_loss_and_gradients_with_the_output_matrix_equal_the_library(
    parity: ParityRecorder, kernels: str
) -> None:
    compare_functions(
        parity,
        f"linear_cross_entropy, {kernels}",
        lambda hidden, weight: kernel(kernels, linear_cross_entropy)(hidden, weight, targets()),
        lambda hidden, weight: functional.cross_entropy(hidden @ weight.T, targets()),
        {"hidden": HIDDEN, "weight": WEIGHT},
        2e-15,
    )


def test_the_gradient_of_a_row_sums_to_zero_and_its_target_is_the_only_negative() -> None:
    """The exercise of cross_entropy.md."""
    logits = LOGITS.clone().requires_grad_()
    cross_entropy(logits, targets()).backward()
    gradient = logits.grad
    assert gradient is not None
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(N).double(), atol=1e-16, rtol=0)
    for row, target in enumerate(targets().tolist()):
        negative = (gradient[row] < 0).nonzero().flatten().tolist()
        assert negative == ([] if target == -100 else [target])


@each_kernel
def test_no_counted_target_is_a_loss_of_zero_and_not_nan(kernels: str) -> None:
    assert kernel(kernels, linear_cross_entropy)(HIDDEN, WEIGHT, torch.full((N,), -100)) == 0


@each_kernel
def test_huge_logits_do_not_overflow(kernels: str) -> None:
    loss = kernel(kernels, linear_cross_entropy)
    hidden, weight = torch.ones(1, 1), torch.tensor([[1e4], [-1e4], [0.0]])
    assert loss(hidden, weight, torch.tensor([0])) == 0
    assert loss(hidden, weight, torch.tensor([1])) == 2e4


@each_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_products_keep_a_float32_loss_and_small_gradients(
    dtype: torch.dtype, kernels: str
) -> None:
    N = 4096  # divided by so many targets, most of these gradients would be below float16's smallest number
    hidden, weight = torch.from_numpy(array(2, N, C)).to(dtype), torch.from_numpy(array(3, V, C)).to(dtype)
    labels = torch.from_numpy(integers(1, V, N))
    results = []
    for kind in (dtype, torch.float64):
        h, w = (x.detach().clone().to(kind).requires_grad_() for x in (hidden, weight))
        loss = kernel(kernels, linear_cross_entropy)(h, w, labels)
        (loss * 4096).backward()  # what a loss scaler does
        assert h.grad is not None
        assert w.grad is not None
        results.append((loss, h.grad, w.grad))
    assert results[0][0].dtype == torch.float32
    for actual, expected in zip(*results, strict=True):
        error = (actual.double() - expected).abs().max() / expected.abs().max()
        assert error < 0.02
