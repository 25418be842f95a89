"""Four tokens and three experts, two for each token, as in v2_handwritten/models/blocks/mixture_of_experts.md."""

import pytest
import torch
from torch import Tensor

from tests.worked import agrees, table
from v2_handwritten.kernels import kernel
from v2_handwritten.models.blocks.mixture_of_experts import (
    expert_mixture,
    load_balancing_loss,
    sigmoid_routing,
    softmax_routing,
    updated_bias,
)

PAGE = "v2_handwritten/models/blocks/mixture_of_experts.md"

P = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.1, 0.4], [0.3, 0.6, 0.1], [0.7, 0.2, 0.1]])  # probabilities
X = torch.tensor([[1.0, 0], [0, 1], [1, 1], [2, 0]])  # four tokens, C = 2
GATE_UP = torch.tensor([[[1.0, 0], [1, 1]], [[1, 1], [1, -1]], [[0, 2], [1, 1]]])  # three experts, F = 1
DOWN = torch.tensor([[[1.0], [0]], [[0], [1]], [[1], [1]]])
D_Y = torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, -1]])


def by_expert(values: Tensor, experts: Tensor) -> Tensor:
    """[N, k] → [N, E]; NaN, a dash in the page, for the experts that a token did not choose."""
    return torch.full((4, 3), torch.nan).scatter(1, experts, values)


def test_routing() -> None:
    routing = softmax_routing(P.log(), 2, norm_topk_prob=True)
    agrees(PAGE, "p", softmax_routing(P.log(), 3, norm_topk_prob=False).logits.softmax(-1))
    agrees(PAGE, "w", by_expert(routing.weights, routing.experts))


@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_forward_and_backward(kernels: str) -> None:
    logits = P.log().requires_grad_()
    routing = softmax_routing(logits, 2, norm_topk_prob=True)
    routing.weights.retain_grad()
    gate, up = torch.einsum("nc,efc->fne", X, GATE_UP)
    chosen = ~by_expert(routing.weights, routing.experts).isnan()
    agrees(PAGE, "h", (gate * gate.sigmoid() * up).where(chosen, torch.nan))
    y = kernel(kernels, expert_mixture)(X, routing.weights, routing.experts, GATE_UP, DOWN)
    agrees(PAGE, "y", y.detach())
    y.backward(D_Y)
    agrees(PAGE, "dw", by_expert(routing.weights.grad, routing.experts))
    agrees(PAGE, "dz", logits.grad)


def test_the_load_balancing_loss_and_its_gradient() -> None:
    logits = P.log().requires_grad_()
    routing = softmax_routing(logits, 2, norm_topk_prob=True)
    f = routing.experts.flatten().bincount(minlength=3) / 4
    agrees(PAGE, "balance", torch.stack([f, P.mean(0), f * P.mean(0)]))
    loss = load_balancing_loss([routing], 3)
    assert loss.item() == pytest.approx(3 * table(PAGE, "balance")[2].sum(), abs=1e-3)
    assert loss.item() == pytest.approx(2.381, abs=5e-4)
    loss.backward()
    agrees(PAGE, "dL/dz", logits.grad, digits=4)


def test_the_bias_takes_part_in_the_choice_alone() -> None:
    """The exercise of mixture_of_experts.md."""
    logits, bias = (P / (1 - P)).log(), torch.zeros(3)  # the sigmoids are P
    before = sigmoid_routing(logits, bias, 2)
    bias = updated_bias(bias, before.experts.flatten().bincount(minlength=3), 0.08)
    torch.testing.assert_close(bias, torch.tensor([-0.08, -0.08, 0.08]))
    agrees(PAGE, "s + b", P + bias)
    after = sigmoid_routing(logits, bias, 2)
    loads = [routing.experts.flatten().bincount(minlength=3).tolist() for routing in (before, after)]
    assert loads == [[4, 3, 1], [4, 2, 2]]
    agrees(PAGE, "w, balanced", by_expert(after.weights, after.experts))
