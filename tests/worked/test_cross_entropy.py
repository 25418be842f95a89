"""The loss of four positions over a vocabulary of four tokens, as in v2_handwritten/models/blocks/cross_entropy.md."""

import pytest
import torch

from tests.worked import agrees
from v2_handwritten.kernels import kernel
from v2_handwritten.models.blocks.cross_entropy import IGNORE_INDEX, cross_entropy, linear_cross_entropy

PAGE = "v2_handwritten/models/blocks/cross_entropy.md"

HIDDEN = torch.tensor([[1.0, 0], [0, 0], [0, 1], [1, 1]])  # four positions: [N = 4, C = 2]
WEIGHT = torch.tensor([[0.0, 3], [2, 0], [1, 0], [-1, 0]])  # the, cat, sat, mat: [V = 4, C]
TARGETS = torch.tensor([1, 2, 3, IGNORE_INDEX])
LOGITS = HIDDEN @ WEIGHT.T


def test_probabilities_and_losses() -> None:
    agrees(PAGE, "logits", LOGITS)
    exponentials = (LOGITS - LOGITS.amax(-1, keepdim=True)).exp()
    sums = exponentials.sum(-1, keepdim=True)
    agrees(PAGE, "exponentials", torch.cat([exponentials, sums], dim=1))
    probabilities = exponentials / sums
    agrees(PAGE, "probabilities", probabilities)
    losses = torch.stack([cross_entropy(LOGITS[i : i + 1], TARGETS[i : i + 1]) for i in range(3)])
    agrees(PAGE, "losses", torch.stack([probabilities[range(3), TARGETS[:3]], losses], dim=1))
    mean = cross_entropy(LOGITS, TARGETS)
    torch.testing.assert_close(mean, losses.mean())
    agrees(PAGE, "mean", [[mean, mean.exp()]])


def test_gradient_of_the_logits() -> None:
    logits = LOGITS.clone().requires_grad_()
    cross_entropy(logits, TARGETS).backward()
    agrees(PAGE, "gradient", logits.grad)


@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_gradients_of_hidden_states_and_output_matrix(kernels: str) -> None:
    hidden, weight = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    kernel(kernels, linear_cross_entropy)(hidden, weight, TARGETS).backward()
    agrees(PAGE, "dh", hidden.grad)
    agrees(PAGE, "dW", weight.grad)
