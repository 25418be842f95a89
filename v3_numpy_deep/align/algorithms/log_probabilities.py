"""How probable a model finds a reply: log p of each of its tokens, in nats. DPO, PPO and GRPO are made of these numbers.

log p(y) = z_y/τ - log Σ exp(z/τ), with the logits z that stand one place before the token y. Three versions of it:
`plain_selected_log_probabilities` with the engine's derivative; `selected_log_probabilities`, which keeps the logits it was
given and one number a token; and `linear_log_probabilities`, which also holds the output matrix, and makes the logits
again in the backward pass instead of keeping them. Each stands here beside its derivative.

Level 1: trl's `selective_log_softmax` and `entropy_from_logits`. Level 2: the same over torch, with mixed precision.

    python -c "import numpy as np; from v3_numpy_deep.align.algorithms.log_probabilities import *; print(selected_log_probabilities(Tensor(np.zeros((1, 2, 8), 'f')), np.array([[1, 2]])))"
"""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from v3_numpy_deep.autograd import Array, Tensor, record
from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.models.padding import _put, hidden_states_of_rows
from v3_numpy_deep.models.transformer import Transformer

_CHUNK_ELEMENTS = 2**18  # logits in memory at a time; 1 MB of float32 stays in a core's cache


def plain_selected_log_probabilities(
    logits: Float[Tensor, "B T V"], ids: Int[Array, "B T"], temperature: float = 1.0
) -> Float[Tensor, "B T"]:
    """log softmax(z/τ) of all V tokens, and of these the one that came; the engine keeps several arrays of V columns."""
    B, T = ids.shape
    return ops.log_softmax(logits / temperature)[np.arange(B)[:, None], np.arange(T), ids]


def selected_log_probabilities(
    logits: Float[Tensor, "B T V"], ids: Int[Array, "B T"], temperature: float = 1.0
) -> Float[Tensor, "B T"]:
    """`plain_selected_log_probabilities`, fused;  ∂z = g/τ (onehot(y) - softmax(z/τ))"""
    z, y = logits.data.reshape(-1, logits.shape[-1]), ids.reshape(-1)
    found, normalizer = np.empty((2, len(y)), z.dtype)
    for chunk in _chunks(len(y), z.shape[-1]):
        found[chunk], normalizer[chunk] = _forward_rows(z[chunk], y[chunk], temperature)

    def derivative(g: Array) -> tuple[Array]:
        g, d_logits = g.reshape(-1), np.empty_like(z)
        for chunk in _chunks(len(y), z.shape[-1]):
            d_logits[chunk] = _backward_rows(z[chunk], y[chunk], temperature, normalizer[chunk], g[chunk])
        return (d_logits.reshape(logits_shape),)

    logits_shape = logits.shape
    return record(found.reshape(ids.shape), (logits,), derivative)


def linear_log_probabilities(
    hidden: Float[Tensor, "N C"],
    weight: Float[Tensor, "V C"],
    ids: Int[Array, "N"],
    temperature: float = 1.0,
) -> Float[Tensor, "N"]:
    """Log-probabilities under the logits z = hidden · weightᵀ;  ∂hidden = ∂z W,  ∂W = ∂zᵀ hidden

    Unlike the mean of a loss, each row has a gradient of its own, which is known only in the backward pass: so the logits
    are made there a second time, and only a few rows of them are in memory at any time.
    """
    h, W = hidden.data, weight.data
    found, normalizer = np.empty((2, len(ids)), h.dtype)
    for chunk in _chunks(len(ids), len(W)):
        found[chunk], normalizer[chunk] = _forward_rows(h[chunk] @ W.T, ids[chunk], temperature)

    def derivative(g: Array) -> tuple[Array, Array]:
        d_hidden, d_weight = np.empty_like(h), np.zeros_like(W)
        for chunk in _chunks(len(ids), len(W)):
            logits = h[chunk] @ W.T
            d_logits = _backward_rows(logits, ids[chunk], temperature, normalizer[chunk], g[chunk])
            np.matmul(d_logits, W, out=d_hidden[chunk])
            d_weight += d_logits.T @ h[chunk]
        return d_hidden, d_weight

    return record(found, (hidden, weight), derivative)


def entropy(logits: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
    """-Σ p log p in nats: 0 for certainty, log V for a shrug. For the tempered distribution, divide the logits first."""
    log_probabilities = ops.log_softmax(logits)
    return -(ops.exp(log_probabilities) * log_probabilities).sum(-1)


def reply_log_probabilities(
    model: Transformer,
    input_ids: Int[Array, "B T"],
    reply_mask: Int[Array, "B T"] | Bool[Array, "B T"],
    attention_mask: Int[Array, "B T"] | Bool[Array, "B T"] | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, "B T-1"]:
    """Column t is log p(token t+1 | tokens 0…t) where token t+1 belongs to the reply, else 0.

    `reply_mask` is 1 on the tokens of the reply and stands over `input_ids`; the shift by one place happens here, and
    nowhere else. Logits are made for the counted places only: not for the prompt, not for padding.
    """
    counted = reply_mask[:, 1:].astype(bool)
    read = np.pad(counted, ((0, 0), (0, 1)))
    hidden = hidden_states_of_rows(model, input_ids, attention_mask, read)
    found = linear_log_probabilities(hidden, model.lm_head.weight, input_ids[:, 1:][counted], temperature)
    return _put(found, counted)


def masked_mean(
    x: Float[Tensor, "*shape"], mask: Int[Array, "*shape"] | Bool[Array, "*shape"]
) -> Float[Tensor, ""]:
    """Mean over the places where the mask is 1; 0 if there is none. What stands elsewhere, even NaN, does not count."""
    counted = mask.astype(bool)
    return ops.where(counted, x, 0).sum() / max(1, int(counted.sum()))


def frozen_copy(model: Transformer) -> Transformer:
    """The reference model: the same weights in memory of their own, without gradients and without dropout.

    Only assigning the model to a second name would train the reference along with the policy: every log-ratio then stays
    0 and the loss never moves.
    """
    frozen = copy.deepcopy(model).eval()
    for parameter in frozen.parameters():
        parameter.requires_grad = False
    return frozen


def _chunks(N: int, V: int) -> Iterator[slice]:
    """Pieces of N rows of V logits."""
    rows = max(1, _CHUNK_ELEMENTS // V)
    return (slice(start, start + rows) for start in range(0, N, rows))


def _forward_rows(logits: Array, ids: Array, temperature: float) -> tuple[Array, Array]:
    """Log-probabilities of these rows, and their log Σ exp(z/τ), all that the backward pass needs besides the logits."""
    scaled = logits / temperature
    largest = scaled.max(-1, keepdims=True)
    exponentials = scaled - largest
    np.exp(exponentials, out=exponentials)
    normalizer = np.log(exponentials.sum(-1)) + largest[:, 0]
    return scaled[np.arange(len(ids)), ids] - normalizer, normalizer


def _backward_rows(logits: Array, ids: Array, temperature: float, normalizer: Array, g: Any) -> Array:
    """∂z = g/τ · (onehot(y) - softmax(z/τ))"""
    g = g / temperature
    d_logits = logits / temperature
    d_logits -= normalizer[:, None]
    np.exp(d_logits, out=d_logits)
    d_logits *= -g[:, None]
    d_logits[np.arange(len(ids)), ids] += g
    return d_logits
