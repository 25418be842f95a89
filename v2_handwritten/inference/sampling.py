"""From logits to the next token: temperature, top-k, top-p, min-p, typical, and a draw by inverse CDF.

Top-k is Fan et al. 2018 (section 5.4), top-p ("nucleus") Holtzman et al. 2020 (section 3.1), min-p Nguyen et al. 2024,
typical sampling Meister et al. 2023. The filters are transformers' warpers in their order: temperature, top-k, top-p, min-p, typical.
A draw takes its uniform number from the caller, so that all levels turn the same number into the same token.

Level 1 calls transformers' warpers; level 3 is the same in NumPy. Theory: sampling.md.

    uv run python -c "import torch; from v2_handwritten.inference.sampling import *; print(filter_logits(torch.tensor([[2., 1., 0.]]), top_k=2))"
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shared_data.device import widest_float
from shared_data.inference.arguments import check_sampling
from shared_data.inference.sampling_parameters import check_filters


def filter_logits(
    logits: Float[Tensor, "B V"],
    temperature: float = 1,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    typical_p: float | None = None,
) -> Float[Tensor, "B V"]:
    """Logits of the distribution to draw from; a token that cannot be drawn has -inf.

    Raises `UserError` for a temperature that is not positive (greedy decoding is an argmax, not a filter) or too small to divide
    by, a `top_k` below 1, a `top_p` or `typical_p` outside (0, 1], a `min_p` outside [0, 1].
    """
    check_sampling(temperature, top_k, top_p)
    check_filters(min_p, typical_p)
    # The library's warpers, too, read float32: a quotient of float16 overflows soon.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    logits = logits if top_k is None else keep_top_k(logits, top_k)
    logits = logits if top_p in (None, 1) else keep_top_p(logits, top_p)
    logits = logits if min_p is None else keep_min_p(logits, min_p)
    return logits if typical_p in (None, 1) else keep_typical(logits, typical_p)


def keep_top_k(logits: Float[Tensor, "B V"], top_k: int) -> Float[Tensor, "B V"]:
    """Drop what is less probable than the k-th token; tokens that tie with it all stay."""
    top_k = min(top_k, logits.shape[-1])
    threshold = torch.topk(logits, top_k).values[:, -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_top_p(logits: Float[Tensor, "B V"], top_p: float) -> Float[Tensor, "B V"]:
    """Keep the fewest tokens whose probabilities reach `top_p` together; the most probable one always stays.

    Tokens leave from the improbable end while the sum of those that left is at most 1 - top_p. Of equal tokens the
    one with the smaller id leaves first, because the sort is stable; the library's is not, so there it is an accident.
    """
    ascending, order = torch.sort(logits, stable=True)
    cumulative = torch.softmax(ascending, dim=-1).cumsum(dim=-1)
    dropped = cumulative <= 1 - top_p
    dropped[:, -1] = False  # rounding may bring even the last sum below 1
    return logits.masked_fill(torch.zeros_like(dropped).scatter_(1, order, dropped), -torch.inf)


def keep_min_p(logits: Float[Tensor, "B V"], min_p: float) -> Float[Tensor, "B V"]:
    """Keep tokens with p >= min_p max(p): few where the model is certain, many where it is not."""
    probabilities = torch.softmax(logits, dim=-1)
    threshold = min_p * probabilities.amax(dim=-1, keepdim=True)
    return logits.masked_fill(probabilities < threshold, -torch.inf)


def keep_typical(logits: Float[Tensor, "B V"], typical_p: float) -> Float[Tensor, "B V"]:
    """Keep the tokens whose surprise -ln p is closest to the entropy H = sum of -p ln p, the fewest that have `typical_p` together.

    The most probable token may be dropped: it can be less surprising than is typical. Tokens that tie with the last one kept stay.
    """
    log_probs = torch.log_softmax(logits, dim=-1)
    probabilities = log_probs.exp()
    entropy = -(log_probs * probabilities).nansum(
        dim=-1, keepdim=True
    )  # 0 ln 0, of a dropped token, counts 0
    distance = (-log_probs - entropy).abs()
    ascending, order = torch.sort(distance, stable=True)
    cumulative = probabilities.gather(-1, order).cumsum(dim=-1)
    last = (cumulative < typical_p).sum(dim=-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    return logits.masked_fill(distance > ascending.gather(-1, last), -torch.inf)


def sample(logits: Float[Tensor, "B V"], uniform: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """One id per row by inverse CDF: the first token whose cumulative probability exceeds the uniform number in [0, 1).

    In float64 (float32 on an Apple GPU). Two levels whose float64 logits agree to rounding disagree on a draw about once in 1e15 / V.
    """
    logits = logits.to(widest_float(logits.device))
    weights = torch.exp(logits - logits.amax(dim=-1, keepdim=True))
    cumulative = weights.cumsum(dim=-1)
    # Scaling the uniform by the total saves a division, and keeps u < total even when the weights' sum is rounded.
    targets = uniform.to(cumulative)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True)[:, 0]
