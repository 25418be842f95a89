"""Two gradients clipped by their global norm, and what an outlier does to Adam, as in v2_handwritten/pretrain/components/gradient_clipping.md."""

import torch
from torch import Tensor

from tests.worked import agrees
from v2_handwritten.pretrain.components.gradient_clipping import clip_gradients
from v2_handwritten.pretrain.components.optimizers import AdamW

PAGE = "v2_handwritten/pretrain/components/gradient_clipping.md"
AFTER = [0, 1, 5, 10, 20, 50, 100, 150, 200]  # steps after the outlier


def parameter(*gradient: float) -> Tensor:
    made = torch.zeros(len(gradient), dtype=torch.float64)
    made.grad = torch.tensor(gradient, dtype=torch.float64)
    return made


def test_two_gradients_are_scaled_by_one_factor() -> None:
    a, b = parameter(3.0, 4.0), parameter(12.0)
    rows = [torch.cat([a.grad, b.grad])]
    assert clip_gradients([a, b], max_norm=1.0) == 13.0
    rows.append(torch.cat([a.grad, b.grad]))
    a, b = parameter(3.0, 4.0), parameter(12.0)
    for one in (a, b):  # wrong: each by itself
        clip_gradients([one], max_norm=1.0)
    rows.append(torch.cat([a.grad, b.grad]))
    norms = torch.stack([row.norm() for row in rows])
    cosines = torch.stack([row @ rows[0] / (row.norm() * rows[0].norm()) for row in rows])
    agrees(PAGE, "gradients", torch.column_stack([*torch.stack(rows).T, norms, cosines]))


def step_lengths(beta2: float, outlier: float, max_norm: float) -> list[float]:
    """Of Adam, in units of the learning rate, for a weight whose gradient is 1 at every step but one."""
    weight = parameter(1.0)
    groups = [{"names": ["weight"], "parameters": [weight], "weight_decay": 0.0}]
    optimizer = AdamW(groups, learning_rate=1.0, betas=(0.9, beta2))
    settled = torch.ones(1, dtype=torch.float64)  # the moments, after a long time
    optimizer.load_state_dict(
        {
            "steps": torch.tensor(100_000),
            "first_moment.weight": settled,
            "second_moment.weight": settled,
        }
    )
    lengths = []
    for step in range(AFTER[-1] + 1):
        weight.grad = settled * (outlier if step == 0 else 1.0)
        clip_gradients([weight], max_norm)
        before = weight.item()
        optimizer.step()
        lengths.append(before - weight.item())
    return lengths


def test_adam_needs_far_longer_than_one_time_constant_to_recover_from_an_outlier() -> None:
    rows = []
    for beta2, max_norm in ((0.95, 0.0), (0.999, 0.0), (0.95, 1.0)):
        lengths = step_lengths(beta2, outlier=100.0, max_norm=max_norm)
        rows.append([lengths[step] for step in AFTER])
    agrees(PAGE, "steps after the outlier", rows, digits=2)
