"""A layer of three features with an update of rank 1: forward, backward, merged, as in v2_handwritten/models/peft/lora.md."""

import numpy as np
import torch

from shared_data.peft.config import LoraConfig
from tests.worked import agrees
from v2_handwritten.models.blocks.linear import Linear
from v2_handwritten.models.peft.lora import LoraLinear

PAGE = "v2_handwritten/models/peft/lora.md"

W = torch.tensor([[1.0, 0, 2], [0, 1, 0], [-1, 0, 1]])
A = torch.tensor([[0.5, 0, 1]])  # [r = 1, I]
B = torch.tensor([[1.0], [0], [-0.5]])  # [O, r = 1]
X = torch.tensor([1.0, 2, -1])
G = torch.tensor([1.0, 0, 1])  # the gradient of the output


def adapted(B: torch.Tensor = B) -> LoraLinear:
    """s = alpha / r = 2."""
    base = Linear(3, 3, bias=False)
    base.weight = torch.nn.Parameter(W, requires_grad=False)
    layer = LoraLinear(base)
    adapter = layer.add_adapter("default", LoraConfig(r=1, lora_alpha=2), A.numpy())
    adapter.lora_B.weight.data.copy_(B)
    layer.active = "default"
    return layer


def test_forward() -> None:
    layer = adapted()
    update = layer(X) - layer.base(X)
    agrees(PAGE, "x", [X.tolist(), layer.base(X).tolist(), update.tolist(), layer(X).tolist()])
    assert float(A @ X) == -0.5


def test_merged() -> None:
    layer = adapted()
    agrees(PAGE, "s B A", layer.adapters["default"].delta_weight())
    agrees(PAGE, "W'", layer.adapted_weight())
    layer.merge()
    assert torch.equal(layer(X), adapted()(X))
    assert torch.equal(layer.base.weight, W)


def test_backward() -> None:
    """Of a new adapter, whose B is 0, and of the one above."""
    rows = []
    for B_ in (torch.zeros(3, 1), B):
        layer = adapted(B_)
        (layer(X) @ G).backward()  # so that dL/dy = G
        adapter = layer.adapters["default"]
        rows.append([*adapter.lora_B.weight.grad.flatten(), *adapter.lora_A.weight.grad.flatten()])
    agrees(PAGE, "gradients", np.array(rows, dtype=float))
