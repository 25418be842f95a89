"""The loss of a language model: the mean of −log softmax(logits)[target] over the targets that count.

`linear_cross_entropy` also holds the output matrix. Here both are formulas with the engine's derivative; their fused versions have
derivatives of their own (autograd/fused/cross_entropy.py), softmax(z) − onehot(y), and never hold more than a few rows of logits.

Level 1: `torch.nn.functional.cross_entropy`. Level 2: the same over torch.

    uv run python -c "import numpy as np; from v3_numpy_deep.models.blocks.cross_entropy import *; print(cross_entropy(Tensor(np.zeros((2, 8), 'f')), np.array([1, 2])))"
"""

import numpy as np
from jaxtyping import Float, Int

from v3_numpy_deep.autograd import Array, Tensor
from v3_numpy_deep.autograd import operations as ops

IGNORE_INDEX = -100  # a target that does not count: padding, or the prompt in instruction tuning


def cross_entropy(
    logits: Float[Tensor, "N V"], targets: Int[Array, "N"], ignore_index: int = IGNORE_INDEX
) -> Float[Tensor, ""]:
    """log Σ exp(z) − z_y, averaged over the targets that are not `ignore_index`; 0 if there is none."""
    counted = targets != ignore_index
    nats = -ops.log_softmax(logits)[np.arange(len(targets)), np.where(counted, targets, 0)]
    return (nats * counted).sum() / max(1, int(counted.sum()))


def soft_capped(logits: Float[Tensor, "*rows V"], softcap: float | None) -> Float[Tensor, "*rows V"]:
    """c tanh(z/c), which is never beyond ±c and nearly z where z is small (Gemma 2); z itself where there is no cap."""
    return logits if softcap is None else softcap * ops.tanh(logits / softcap)


def linear_cross_entropy(
    hidden: Float[Tensor, "N C"],
    weight: Float[Tensor, "V C"],
    targets: Int[Array, "N"],
    ignore_index: int = IGNORE_INDEX,
    softcap: float | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of the logits hidden · weightᵀ, soft-capped."""
    return cross_entropy(soft_capped(hidden @ ops.transpose(weight), softcap), targets, ignore_index)
