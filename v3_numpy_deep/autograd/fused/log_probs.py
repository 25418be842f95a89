"""Log-probabilities of chosen tokens, ln softmax(z/τ)_y = z_y/τ − ln Σ exp(z/τ), one number a row.

Derivative: ∂z = g/τ · (onehot(y) − softmax(z/τ)). Unlike the mean of a loss (cross_entropy.py), each row has a g of its own,
known only in the backward pass. So the forward pass keeps one number a row, L = ln Σ exp(z/τ), and the backward pass makes
softmax(z/τ) = exp(z/τ − L) again, from logits that it makes a second time too: only a few rows of them are in memory at any
time. The composition is the function of the same name in models/blocks/log_probs.py.

    uv run python -c "from v3_numpy_deep.autograd.fused.log_probs import linear_log_probs; help(linear_log_probs)"
"""

import numpy as np
from jaxtyping import Float, Int

from v3_numpy_deep.autograd.fused.blocks import LOGITS_BLOCK, row_blocks
from v3_numpy_deep.autograd.fused.cross_entropy import cap_logits
from v3_numpy_deep.autograd.tensor import Array, Tensor, record


def linear_log_probs(
    hidden: Float[Tensor, "N C"],
    weight: Float[Tensor, "V C"],
    ids: Int[Array, "N"],
    temperature: float = 1.0,
    softcap: float | None = None,
) -> Float[Tensor, "N"]:
    """ln softmax(z/τ)_y of the logits z = hidden · Wᵀ, soft-capped;  ∂hidden = ∂z W,  ∂W = ∂zᵀ hidden"""
    h, W = hidden.data, weight.data
    needs_weight = weight.requires_grad
    log_probs, normalizer = np.empty((2, len(ids)), h.dtype)
    for rows in row_blocks(len(ids), len(W), LOGITS_BLOCK):
        logits = h[rows] @ W.T
        if softcap is not None:
            cap_logits(logits, softcap)
        log_probs[rows], normalizer[rows] = _forward_rows(logits, ids[rows], temperature)

    def derivative(g: Array) -> tuple[Array, Array | None]:
        grad_hidden, grad_weight = np.empty_like(h), np.zeros_like(W) if needs_weight else None
        for rows in row_blocks(len(ids), len(W), LOGITS_BLOCK):
            logits = h[rows] @ W.T
            slope = None if softcap is None else cap_logits(logits, softcap)
            grad_logits = _backward_rows(logits, ids[rows], temperature, normalizer[rows], g[rows])
            if slope is not None:
                grad_logits *= slope
            np.matmul(grad_logits, W, out=grad_hidden[rows])
            if grad_weight is not None:
                grad_weight += grad_logits.T @ h[rows]
        return grad_hidden, grad_weight

    return record(log_probs, (hidden, weight), derivative)


def _forward_rows(
    logits: Float[Array, "n V"], ids: Int[Array, "n"], temperature: float
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """z_y/τ − L of these rows, and L = ln Σ exp(z/τ)."""
    scaled = logits / temperature
    largest = scaled.max(axis=1, keepdims=True)
    chosen = scaled[np.arange(len(ids)), ids]
    scaled -= largest
    np.exp(scaled, out=scaled)
    normalizer = np.log(scaled @ np.ones(scaled.shape[1], scaled.dtype)) + largest[:, 0]
    return chosen - normalizer, normalizer


def _backward_rows(
    logits: Float[Array, "n V"],
    ids: Int[Array, "n"],
    temperature: float,
    normalizer: Float[Array, "n"],
    g: Float[Array, "n"],
) -> Float[Array, "n V"]:
    """g/τ · (onehot(y) − exp(z/τ − L))"""
    G = g / temperature
    grad_logits = logits / temperature
    grad_logits -= normalizer[:, None]
    np.exp(grad_logits, out=grad_logits)
    grad_logits *= -G[:, None]
    grad_logits[np.arange(len(ids)), ids] += G
    return grad_logits
