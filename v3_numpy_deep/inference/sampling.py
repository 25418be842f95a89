"""From logits to the next token: temperature, top-k, top-p, min-p, typical, and a draw by inverse CDF.

Top-k is Fan et al. 2018 (section 5.4), top-p ("nucleus") Holtzman et al. 2020 (section 3.1), min-p Nguyen et al. 2024,
typical sampling Meister et al. 2023. The filters are transformers' warpers in their order: temperature, top-k, top-p, min-p, typical.
A draw takes its uniform number from the caller, so that all levels turn the same number into the same token.

Level 1 calls transformers' warpers; level 2 is the same in torch. Theory: v2_handwritten/inference/sampling.md.

    uv run python -c "import numpy as np; from v3_numpy_deep.inference.sampling import *; print(filter_logits(np.array([[2., 1., 0.]]), top_k=2))"
"""

import numpy as np
from jaxtyping import Float, Int

from shared_data.inference.arguments import check_sampling
from shared_data.inference.sampling_parameters import check_filters
from v3_numpy_deep.autograd import Array


def filter_logits(
    logits: Float[Array, "B V"],
    temperature: float = 1,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    typical_p: float | None = None,
) -> Float[Array, "B V"]:
    """Logits of the distribution to draw from; a token that cannot be drawn has -inf.

    Raises `UserError` for a temperature that is not positive (greedy decoding is an argmax, not a filter) or too small to divide
    by, a `top_k` below 1, a `top_p` or `typical_p` outside (0, 1], a `min_p` outside [0, 1].
    """
    check_sampling(temperature, top_k, top_p)
    check_filters(min_p, typical_p)
    logits = logits / temperature
    logits = logits if top_k is None else keep_top_k(logits, top_k)
    logits = logits if top_p in (None, 1) else keep_top_p(logits, top_p)
    logits = logits if min_p is None else keep_min_p(logits, min_p)
    return logits if typical_p in (None, 1) else keep_typical(logits, typical_p)


def keep_top_k(logits: Float[Array, "B V"], top_k: int) -> Float[Array, "B V"]:
    """Drop what is less probable than the k-th token; tokens that tie with it all stay."""
    top_k = min(top_k, logits.shape[-1])
    threshold = np.partition(logits, -top_k)[:, -top_k, None]  # a selection in O(V), not a sort
    return np.where(logits < threshold, -np.inf, logits).astype(logits.dtype)


def keep_top_p(logits: Float[Array, "B V"], top_p: float) -> Float[Array, "B V"]:
    """Keep the fewest tokens whose probabilities reach `top_p` together; the most probable one always stays.

    Tokens leave from the improbable end while the sum of those that left is at most 1 - top_p. Of equal tokens the
    one with the smaller id leaves first, because the sort is stable; the library's is not, so there it is an accident.
    """
    order = np.argsort(logits, axis=-1, kind="stable")
    ascending = np.take_along_axis(logits, order, axis=-1)
    weights = np.exp(ascending - ascending[:, -1:])
    probabilities = weights / weights.sum(axis=-1, keepdims=True)
    # torch sums float32 in float64 and rounds each partial sum; done the same way, the same tokens leave.
    cumulative = probabilities.cumsum(axis=-1, dtype=np.float64).astype(logits.dtype)
    dropped = cumulative <= 1 - top_p
    dropped[:, -1] = False  # rounding may bring even the last sum below 1
    remove = np.zeros_like(dropped)
    np.put_along_axis(remove, order, dropped, axis=-1)
    return np.where(remove, -np.inf, logits).astype(logits.dtype)


def keep_min_p(logits: Float[Array, "B V"], min_p: float) -> Float[Array, "B V"]:
    """Keep tokens with p >= min_p max(p): few where the model is certain, many where it is not."""
    ratios = np.exp(logits - logits.max(axis=-1, keepdims=True))  # p / max(p): their sum cancels
    return np.where(ratios < min_p, -np.inf, logits).astype(logits.dtype)


def keep_typical(logits: Float[Array, "B V"], typical_p: float) -> Float[Array, "B V"]:
    """Keep the tokens whose surprise -ln p is closest to the entropy H = sum of -p ln p, the fewest that have `typical_p` together.

    The most probable token may be dropped: it can be less surprising than is typical. Tokens that tie with the last one kept stay.
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    surprise = np.log(np.exp(shifted).sum(axis=-1, keepdims=True)) - shifted
    probabilities = np.exp(-surprise)
    finite = np.where(np.isfinite(surprise), surprise, 0)  # 0 ln 0, of a dropped token, counts 0
    entropy = (probabilities * finite).sum(axis=-1, keepdims=True)
    distance = np.abs(surprise - entropy)
    order = np.argsort(distance, axis=-1, kind="stable")
    ascending = np.take_along_axis(probabilities, order, axis=-1)
    cumulative = ascending.cumsum(axis=-1, dtype=np.float64).astype(logits.dtype)  # as in `keep_top_p`
    last = np.minimum((cumulative < typical_p).sum(axis=-1, keepdims=True), logits.shape[-1] - 1)
    threshold = np.take_along_axis(distance, np.take_along_axis(order, last, axis=-1), axis=-1)
    return np.where(distance > threshold, -np.inf, logits).astype(logits.dtype)


def sample(logits: Float[Array, "B V"], uniform: Float[Array, " B"]) -> Int[Array, " B"]:
    """One id per row by inverse CDF: the first token whose cumulative probability exceeds the uniform number in [0, 1).

    In float64. Two levels whose float64 logits agree to rounding disagree on a draw about once in 1e15 / V.
    """
    logits = logits.astype(np.float64)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    cumulative = weights.cumsum(axis=-1)
    # Scaling the uniform by the total saves a division, and keeps u < total even when the weights' sum is rounded.
    targets = uniform[:, None] * cumulative[:, -1:]
    return (cumulative <= targets).sum(axis=-1)
