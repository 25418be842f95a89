"""Cross-entropy of logits, −ln softmax(z)_y = ln Σ exp(z) − z_y, averaged over the targets that count.

Derivative: ∂z = (softmax(z) − onehot(y)) · g / n. Both need the same exponentials, so the forward pass leaves the
derivative where the logits were. `linear_cross_entropy` also holds the output matrix: it makes a few rows of logits at a
time, and keeps the gradients of its two inputs instead of the logits, which with V = 50,000 would be the largest array of
a training step (the idea of Wijmans et al. 2024, "Cut Your Losses", and of the Liger kernels). It can, because the loss is one
number: g only scales what is known already.
The compositions are the functions of the same names in models/blocks/cross_entropy.py.

    uv run python -c "from v3_numpy_deep.autograd.fused.cross_entropy import cross_entropy; help(cross_entropy)"
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from v3_numpy_deep.autograd.fused.blocks import LOGITS_BLOCK, row_blocks
from v3_numpy_deep.autograd.tensor import Array, Tensor, is_recording, record


def cross_entropy(
    logits: Float[Tensor, "N V"], targets: Int[Array, "N"], ignore_index: int = -100
) -> Float[Tensor, ""]:
    """The mean over the targets that are not `ignore_index`; 0 if there is none.  ∂z = (softmax(z) − onehot(y)) g / n"""
    scale = _scale(targets, ignore_index, logits.dtype)
    grad_logits = logits.data.copy()
    loss = _loss_and_gradient(grad_logits, targets, ignore_index, scale)
    return record(loss, (logits,), lambda g: (grad_logits * g,))


def linear_cross_entropy(
    hidden: Float[Tensor, "N C"],
    weight: Float[Tensor, "V C"],
    targets: Int[Array, "N"],
    ignore_index: int = -100,
    softcap: float | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of the logits z = hidden · Wᵀ, a few rows at a time;  ∂hidden = ∂z W,  ∂W = ∂zᵀ hidden

    With a cap c, of c t, where t = tanh(z/c):  ∂z = (1 − t²) ∂(c t)
    """
    h, W = hidden.data, weight.data
    scale = _scale(targets, ignore_index, W.dtype)
    needs_gradient = is_recording() and (hidden.requires_grad or weight.requires_grad)
    grad_hidden = np.empty_like(h) if needs_gradient else None
    grad_weight = np.zeros_like(W) if needs_gradient and weight.requires_grad else None
    loss = W.dtype.type(0)
    for rows in row_blocks(len(h), len(W), LOGITS_BLOCK):
        logits = h[rows] @ W.T
        slope = None if softcap is None else cap_logits(logits, softcap)
        loss += _loss_and_gradient(logits, targets[rows], ignore_index, scale)  # logits are now ∂z
        if slope is not None:
            logits *= slope
        if grad_hidden is not None:
            np.matmul(logits, W, out=grad_hidden[rows])
        if grad_weight is not None:
            grad_weight += logits.T @ h[rows]
    return record(
        loss, (hidden, weight), lambda g: (grad_hidden * g, None if grad_weight is None else grad_weight * g)
    )


def cap_logits(logits: Float[Array, "n V"], softcap: float) -> Float[Array, "n V"]:
    """Logits z become c tanh(z/c), in place; returns the slope, 1 − tanh²(z/c)."""
    logits /= softcap
    np.tanh(logits, out=logits)
    slope = 1.0 - logits * logits
    logits *= softcap
    return slope


def _scale(targets: Array, ignore_index: int, dtype: np.dtype) -> Any:
    """1 / number of targets that count, in the type of the logits."""
    return dtype.type(1.0 / max(1, int((targets != ignore_index).sum())))


def _loss_and_gradient(logits: Array, targets: Array, ignore_index: int, scale: Any) -> Any:
    """Sum of the losses of these rows times `scale`; `logits` becomes its gradient, (softmax − onehot) · scale."""
    counted = targets != ignore_index
    at_target = (np.arange(len(targets)), np.where(counted, targets, 0))
    logits -= logits.max(axis=1, keepdims=True)  # exp cannot overflow; the loss does not change
    target_logits = logits[at_target]
    np.exp(logits, out=logits)
    total = logits @ np.ones(logits.shape[1], logits.dtype)
    row_scale = counted * scale
    logits *= (row_scale / total)[:, None]
    logits[at_target] -= row_scale  # instead of subtracting a one-hot array
    return ((np.log(total) - target_logits) * row_scale).sum()
