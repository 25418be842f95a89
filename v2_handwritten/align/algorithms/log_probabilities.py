"""How probable a model finds a reply: log p of each of its tokens, in nats. DPO, PPO and GRPO are made of these numbers.

log p(y) = z_y/τ - log Σ exp(z/τ), with the logits z that stand one place before the token y. Three versions of it:
`plain_selected_log_probabilities` with autograd's derivative; `selected_log_probabilities`, which keeps the logits it was
given and one number a token; and `linear_log_probabilities`, which also holds the output matrix, and makes the logits
again in the backward pass instead of keeping them. Derivation in log_probabilities.md.

Level 1: trl's `selective_log_softmax` and `entropy_from_logits`. Level 3: the same over NumPy.

    python -c "import torch; from v2_handwritten.align.algorithms.log_probabilities import *; print(selected_log_probabilities(torch.zeros(1, 2, 8), torch.tensor([[1, 2]])))"
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from v2_handwritten.models.padding import hidden_states_of_rows
from v2_handwritten.models.transformer import Transformer

_CHUNK_ELEMENTS = 2**18  # logits in memory at a time; 1 MB of float32 stays in a core's cache


def plain_selected_log_probabilities(
    logits: Float[Tensor, "B T V"], ids: Int[Tensor, "B T"], temperature: float = 1.0
) -> Float[Tensor, "B T"]:
    """log softmax(z/τ) of all V tokens, and of these the one that came; autograd keeps several arrays of V columns."""
    return _log_softmax(logits / temperature).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def selected_log_probabilities(
    logits: Float[Tensor, "B T V"], ids: Int[Tensor, "B T"], temperature: float = 1.0
) -> Float[Tensor, "B T"]:
    """`plain_selected_log_probabilities`, fused. The logits are kept for the backward pass: do not write into them."""
    rows = _SelectedLogProbabilities.apply(logits.flatten(0, 1), ids.flatten(), temperature)
    return rows.view(ids.shape)


def linear_log_probabilities(
    hidden: Float[Tensor, "N C"],
    weight: Float[Tensor, "V C"],
    ids: Int[Tensor, "N"],
    temperature: float = 1.0,
) -> Float[Tensor, "N"]:
    """Log-probabilities under the logits hidden · weightᵀ, of which only a few rows are in memory at any time."""
    return _LinearLogProbabilities.apply(hidden, weight, ids, temperature)


def entropy(logits: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
    """-Σ p log p in nats: 0 for certainty, log V for a shrug. For the tempered distribution, divide the logits first."""
    log_probabilities = _log_softmax(logits)
    return -(log_probabilities.exp() * log_probabilities).sum(-1)


def reply_log_probabilities(
    model: Transformer,
    input_ids: Int[Tensor, "B T"],
    reply_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"],
    attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, "B T-1"]:
    """Column t is log p(token t+1 | tokens 0…t) where token t+1 belongs to the reply, else 0.

    `reply_mask` is 1 on the tokens of the reply and stands over `input_ids`; the shift by one place happens here, and
    nowhere else. Logits are made for the counted places only: not for the prompt, not for padding.
    """
    counted = reply_mask[:, 1:].bool()
    hidden = hidden_states_of_rows(model, input_ids, attention_mask, read=pad(counted, (0, 1)))
    dtype = model.compute_dtype or model.lm_head.weight.dtype
    found = linear_log_probabilities(
        hidden.to(dtype), model.lm_head.weight.to(dtype), input_ids[:, 1:][counted], temperature
    )
    return torch.zeros_like(counted, dtype=found.dtype).masked_scatter(counted, found)


def masked_mean(
    x: Float[Tensor, "*shape"], mask: Int[Tensor, "*shape"] | Bool[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    """Mean over the places where the mask is 1; 0 if there is none. What stands elsewhere, even NaN, does not count."""
    counted = mask.bool()
    return torch.where(counted, x, 0).sum() / counted.sum().clamp(min=1)


def frozen_copy(model: Transformer) -> Transformer:
    """The reference model: the same weights in memory of their own, without gradients and without dropout.

    Only assigning the model to a second name would train the reference along with the policy: every log-ratio then stays
    0 and the loss never moves.
    """
    return copy.deepcopy(model).requires_grad_(False).eval()


def _log_softmax(logits: Tensor) -> Tensor:
    """z - log Σ exp(z) over the last axis, at least in float32; the largest is taken off, lest exp overflows."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    shifted = wide - wide.amax(-1, keepdim=True).detach()
    return shifted - shifted.exp().sum(-1, keepdim=True).log()


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


class _SelectedLogProbabilities(torch.autograd.Function):
    """Keeps the logits (which are there in any case) and one number a row."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        found = torch.empty(ids.shape, dtype=wide, device=ids.device)
        normalizer = torch.empty_like(found)
        for chunk in _chunks(len(ids), logits.shape[-1], logits.device):
            found[chunk], normalizer[chunk] = _forward_rows(logits[chunk].to(wide), ids[chunk], temperature)
        ctx.save_for_backward(logits, ids, normalizer)
        ctx.temperature = temperature
        return found

    @staticmethod
    def backward(ctx: Any, d_found: Tensor) -> tuple[Tensor, None, None]:
        logits, ids, normalizer = ctx.saved_tensors
        d_logits = torch.empty_like(logits)
        for chunk in _chunks(len(ids), logits.shape[-1], logits.device):
            d_logits[chunk] = _backward_rows(
                logits[chunk].to(d_found.dtype),
                ids[chunk],
                ctx.temperature,
                normalizer[chunk],
                d_found[chunk],
            )
        return d_logits, None, None


class _LinearLogProbabilities(torch.autograd.Function):
    """z = h Wᵀ;  dh = dz W,  dW = dzᵀ h. Unlike the mean of a loss, each row has a gradient of its own, which is known only
    in the backward pass: so the logits are made there a second time, a few rows at a time."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        found = torch.empty(ids.shape, dtype=wide, device=ids.device)
        normalizer = torch.empty_like(found)
        for chunk in _chunks(len(ids), len(weight), hidden.device):
            logits = (hidden[chunk] @ weight.T).to(wide)
            found[chunk], normalizer[chunk] = _forward_rows(logits, ids[chunk], temperature)
        ctx.save_for_backward(hidden, weight, ids, normalizer)
        ctx.temperature = temperature
        return found

    @staticmethod
    def backward(ctx: Any, d_found: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, weight, ids, normalizer = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=d_found.dtype)
        for chunk in _chunks(len(ids), len(weight), hidden.device):
            logits = (hidden[chunk] @ weight.T).to(d_found.dtype)
            d_logits = _backward_rows(logits, ids[chunk], ctx.temperature, normalizer[chunk], d_found[chunk])
            d_logits = d_logits.to(weight.dtype)
            torch.mm(d_logits, weight, out=d_hidden[chunk])
            d_weight += d_logits.T @ hidden[chunk]
        return d_hidden, d_weight.to(weight.dtype), None, None
