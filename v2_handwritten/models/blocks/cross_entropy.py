"""The loss of a language model: mean of -log softmax(logits)[target], over the targets that count.

The derivative is softmax(z) - onehot(y), derived in cross_entropy.md. The logits are the largest array of a training step; the fused
version (kernels/fused/cross_entropy.py) never has more than a few rows of them in memory.

Level 1: `torch.nn.functional.cross_entropy`. Level 3: the same over its own autograd.

    uv run python -c "import torch; from v2_handwritten.models.blocks.cross_entropy import *; print(cross_entropy(torch.zeros(2, 8), torch.tensor([1, 2])))"
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORE_INDEX = -100  # a target that does not count: padding, or the prompt in instruction tuning


def cross_entropy(
    logits: Float[Tensor, "N V"], targets: Int[Tensor, "N"], ignore_index: int = IGNORE_INDEX
) -> Float[Tensor, ""]:
    """log Σ exp(z) - z_y, averaged over the targets that are not `ignore_index`."""
    counted = targets != ignore_index
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    shifted = wide - wide.amax(-1, keepdim=True).detach()  # exp cannot overflow; the loss does not change
    target_logits = shifted.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    nats = shifted.exp().sum(-1).log() - target_logits
    return (nats * counted).sum() / counted.sum().clamp(min=1)


def soft_capped(logits: Float[Tensor, "*rows V"], softcap: float | None) -> Float[Tensor, "*rows V"]:
    """c tanh(z/c), which is never beyond ±c and nearly z where z is small (Gemma 2); z itself where there is no cap."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def linear_cross_entropy(
    hidden: Float[Tensor, "N C"],
    weight: Float[Tensor, "V C"],
    targets: Int[Tensor, "N"],
    ignore_index: int = IGNORE_INDEX,
    softcap: float | None = None,
) -> Float[Tensor, ""]:
    """`cross_entropy` of the logits hidden · weightᵀ, soft-capped."""
    return cross_entropy(soft_capped(hidden @ weight.T, softcap), targets, ignore_index)
