"""Output matrix and cross-entropy in one: with 50,000 tokens in the vocabulary, the logits are never all in memory.

A few rows of logits at a time become their own gradient, softmax(z) - onehot(y), in place. Derivation: models/blocks/cross_entropy.md.

Level 3: the same over NumPy.

    linear_cross_entropy(hidden, weight, targets)   # as models/blocks/cross_entropy.py
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from v2_handwritten.models.blocks.cross_entropy import IGNORE_INDEX

_CHUNK_ELEMENTS = 2**18  # logits in memory at a time; 1 MB of float32 stays in a core's cache


def linear_cross_entropy(
    hidden: Float[Tensor, "N C"],
    weight: Float[Tensor, "V C"],
    targets: Int[Tensor, "N"],
    ignore_index: int = IGNORE_INDEX,
    softcap: float | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of the logits hidden · weightᵀ, soft-capped, a few rows at a time, with both gradients computed on the way."""
    if not torch.is_grad_enabled():  # a Function's needs_input_grad is true of a parameter even then
        hidden, weight = hidden.detach(), weight.detach()
    return _LinearCrossEntropy.apply(hidden, weight, targets, ignore_index, softcap)


class _LinearCrossEntropy(torch.autograd.Function):
    """z = h Wᵀ;  dh = dz W,  dW = dzᵀ h, chunk by chunk in the forward pass; the backward pass only scales them.

    The division by the number of targets waits for the backward pass: in float16 the gradients would underflow.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, softcap: float | None
    ) -> Tensor:
        ctx.count = (targets != ignore_index).sum().clamp(min=1)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        gradients = any(ctx.needs_input_grad)
        d_hidden = torch.empty_like(hidden) if gradients else None
        d_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None  # none if frozen
        loss = hidden.new_zeros((), dtype=wide)
        rows = max(1, _CHUNK_ELEMENTS // weight.shape[0]) if hidden.device.type == "cpu" else 4096
        for start in range(0, hidden.shape[0], rows):
            chunk = slice(start, start + rows)
            logits = (hidden[chunk] @ weight.T).to(wide)
            slope = None if softcap is None else cap_logits(logits, softcap)
            loss += _loss_and_gradient(logits, targets[chunk], ignore_index)
            if slope is not None:
                logits.mul_(slope)
            if d_hidden is not None:
                d_logits = logits.to(weight.dtype)
                torch.mm(d_logits, weight, out=d_hidden[chunk])
                if d_weight is None:
                    continue
                if d_weight.dtype == weight.dtype:
                    d_weight.addmm_(d_logits.T, hidden[chunk])
                else:
                    d_weight += d_logits.T @ hidden[chunk]
        ctx.save_for_backward(d_hidden, d_weight)
        return loss / ctx.count

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        scale = d_loss / ctx.count
        d_weight = None if d_weight is None else (d_weight * scale).to(d_hidden.dtype)
        return d_hidden * scale.to(d_hidden.dtype), d_weight, None, None, None


def cap_logits(logits: Float[Tensor, "n V"], softcap: float) -> Float[Tensor, "n V"]:
    """Logits become c tanh(z/c), in place; returns the slope, 1 - tanh²(z/c)."""
    logits.div_(softcap).tanh_()
    slope = (logits * logits).neg_().add_(1)
    logits.mul_(softcap)
    return slope


def _loss_and_gradient(logits: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    """Sum of the losses of these rows; `logits` (float32 or wider) becomes its gradient, softmax(z) - onehot(y)."""
    counted = targets != ignore_index
    columns = targets.clamp(min=0).unsqueeze(-1)
    logits.sub_(logits.amax(-1, keepdim=True))  # exp cannot overflow; the loss does not change
    target_logits = logits.gather(-1, columns).squeeze(-1)
    total = logits.exp_().sum(-1)
    nats = total.log() - target_logits
    logits.mul_((counted / total).unsqueeze(-1))
    # p[rows, y] -= 1: no one-hot array.
    logits.scatter_add_(-1, columns, -counted.to(logits.dtype).unsqueeze(-1))
    return (nats * counted).sum()
