"""Gradient clipping by global norm (Pascanu et al. 2013, algorithm 1): one factor for all gradients keeps their direction.

Level 1 is `torch.nn.utils.clip_grad_norm_`; level 3 is the same in NumPy.

    norm = clip_gradients(model.parameters(), max_norm=1.0)
"""

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients in place so that their global norm is at most `max_norm`; 0 changes nothing.

    Returns the norm before clipping. It is not finite where any gradient is not, and then the gradients are left alone.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return 0.0
    # The norm of the norms is the norm of everything laid end to end; `.item()` waits for the GPU.
    norm = torch.stack(torch._foreach_norm(gradients)).norm().item()
    if 0 < max_norm < norm < float("inf"):
        torch._foreach_mul_(gradients, max_norm / (norm + 1e-6))  # 1e-6 as torch has it
    return norm
