"""Gradient clipping by global norm (Pascanu et al. 2013, algorithm 1): one factor for all gradients keeps their direction.

Level 1 is `torch.nn.utils.clip_grad_norm_`; level 2 is the same with `torch._foreach_*`.

    norm = clip_gradients(model.parameters(), max_norm=1.0)
"""

import math
from collections.abc import Iterable

from v3_numpy_deep.autograd.tensor import Tensor


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients in place so that their global norm is at most `max_norm`; 0 changes nothing.

    Returns the norm before clipping. It is not finite where any gradient is not, and then the gradients are left alone.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return 0.0
    # A dot product with itself is the sum of squares in one pass, without an array of squares.
    norm = math.sqrt(math.fsum(float(g.reshape(-1) @ g.reshape(-1)) for g in gradients))
    if 0 < max_norm < norm < float("inf"):
        for gradient in gradients:
            gradient *= max_norm / (norm + 1e-6)  # 1e-6 as torch has it
    return norm
