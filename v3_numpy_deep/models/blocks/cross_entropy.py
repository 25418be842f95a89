"""The loss of a language model: mean of -log softmax(logits)[target], over the targets that count.

Three versions: `plain_cross_entropy` with the engine's derivative; `cross_entropy`, which turns a copy of the logits into
their gradient, softmax(z) - onehot(y); and `linear_cross_entropy`, which also holds the output matrix and never has
more than a few rows of logits in memory: with 50,000 tokens in the vocabulary they are the largest array of a training
step. The derivatives stand in autograd/fused/cross_entropy.py.

Level 1: `torch.nn.functional.cross_entropy`. Level 2: the same over torch.

    python -c "import numpy as np; from v3_numpy_deep.models.blocks.cross_entropy import *; print(cross_entropy(Tensor(np.zeros((2, 8), 'f')), np.array([1, 2])))"
"""

import numpy as np
from jaxtyping import Float, Int

from v3_numpy_deep.autograd import Array, Tensor, fused
from v3_numpy_deep.autograd import operations as ops

IGNORE_INDEX = -100  # a target that does not count: padding, or the prompt in instruction tuning


def plain_cross_entropy(
    logits: Float[Tensor, "N V"], targets: Int[Array, "N"], ignore_index: int = IGNORE_INDEX
) -> Float[Tensor, ""]:
    """log Σ exp(z) - z_y, averaged over the targets that are not `ignore_index`."""
    counted = targets != ignore_index
    shifted = logits - logits.data.max(-1, keepdims=True)  # exp cannot overflow; the loss does not change
    target_logits = shifted[np.arange(len(targets)), targets.clip(min=0)]
    nats = ops.log(ops.exp(shifted).sum(-1)) - target_logits
    return (nats * counted).sum() / max(1, int(counted.sum()))


def cross_entropy(
    logits: Float[Tensor, "N V"], targets: Int[Array, "N"], ignore_index: int = IGNORE_INDEX
) -> Float[Tensor, ""]:
    """`plain_cross_entropy`, fused."""
    return fused.cross_entropy(logits, targets, ignore_index)


def linear_cross_entropy(
    hidden: Float[Tensor, "N C"],
    weight: Float[Tensor, "V C"],
    targets: Int[Array, "N"],
    ignore_index: int = IGNORE_INDEX,
) -> Float[Tensor, ""]:
    """Cross-entropy of the logits hidden · weightᵀ, a few rows at a time, with both gradients computed on the way."""
    return fused.linear_cross_entropy(hidden, weight, targets, ignore_index)
