"""Output matrix and log-probabilities in one: the logits are made a few rows at a time, and again in the backward pass.

Derivation: models/log_probs.md.

Level 3: the same over NumPy.

    linear_log_probs(hidden, weight, ids, temperature)   # as models/log_probs.py
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from v2_handwritten.kernels.fused.cross_entropy import cap_logits

_CHUNK_ELEMENTS = 2**18  # logits in memory at a time; 1 MB of float32 stays in a core's cache


def linear_log_probs(
    hidden: Float[Tensor, "N C"],
    weight: Float[Tensor, "V C"],
    ids: Int[Tensor, "N"],
    temperature: float = 1.0,
    softcap: float | None = None,
) -> Float[Tensor, "N"]:
    """Log-probabilities under the logits hidden · weightᵀ, soft-capped, of which only a few rows are in memory at any time."""
    return _LinearLogProbs.apply(hidden, weight, ids, temperature, softcap)


class _LinearLogProbs(torch.autograd.Function):
    """z = h Wᵀ;  dh = dz W,  dW = dzᵀ h. Unlike the mean of a loss, each row has a gradient of its own, which is known only
    in the backward pass: so the logits are made there a second time, a few rows at a time."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, softcap: float | None
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        found = torch.empty(ids.shape, dtype=wide, device=ids.device)
        normalizer = torch.empty_like(found)
        for chunk in _chunks(len(ids), len(weight), hidden.device):
            logits = (hidden[chunk] @ weight.T).to(wide)
            if softcap is not None:
                cap_logits(logits, softcap)
            found[chunk], normalizer[chunk] = _forward_rows(logits, ids[chunk], temperature)
        ctx.save_for_backward(hidden, weight, ids, normalizer)
        ctx.temperature, ctx.softcap = temperature, softcap
        return found

    @staticmethod
    def backward(ctx: Any, d_found: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden, weight, ids, normalizer = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=d_found.dtype)
        for chunk in _chunks(len(ids), len(weight), hidden.device):
            logits = (hidden[chunk] @ weight.T).to(d_found.dtype)
            slope = None if ctx.softcap is None else cap_logits(logits, ctx.softcap)
            d_logits = _backward_rows(logits, ids[chunk], ctx.temperature, normalizer[chunk], d_found[chunk])
            d_logits = d_logits if slope is None else d_logits.mul_(slope)
            d_logits = d_logits.to(weight.dtype)
            torch.mm(d_logits, weight, out=d_hidden[chunk])
            d_weight += d_logits.T @ hidden[chunk]
        return d_hidden, d_weight.to(weight.dtype), None, None, None


def _chunks(N: int, V: int, device: torch.device) -> Iterator[slice]:
    """Pieces of N rows of V logits."""
    rows = max(1, _CHUNK_ELEMENTS // V) if device.type == "cpu" else 4096
    return (slice(start, start + rows) for start in range(0, N, rows))


def _forward_rows(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of these rows, and their log Σ exp(z/τ), all that the backward pass needs besides the logits."""
    scaled = logits / temperature
    largest = scaled.amax(-1, keepdim=True)
    normalizer = (scaled - largest).exp_().sum(-1).log_() + largest.squeeze(-1)
    return scaled.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - normalizer, normalizer


def _backward_rows(
    logits: Tensor, ids: Tensor, temperature: float, normalizer: Tensor, d_rows: Tensor
) -> Tensor:
    """dz = g/τ · (onehot(y) - softmax(z/τ))."""
    g = (d_rows / temperature).unsqueeze(-1)
    d_logits = (logits / temperature).sub_(normalizer.unsqueeze(-1)).exp_().mul_(-g)
    return d_logits.scatter_add_(-1, ids.unsqueeze(-1), g)
