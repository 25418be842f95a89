"""From logits to the next token: temperature, top-k, top-p: transformers' warpers, as `model.generate` runs them.

`model.generate(do_sample=True)` draws with `torch.multinomial` and torch's global generator. `sample` draws by inverse
CDF from given uniform numbers instead, so that all three levels can be shown to draw the same token.

Levels 2 and 3 write the filters by hand. Theory: v2_handwritten/inference/sampling.md.

    python -c "import torch; from v1_quick.inference.sampling import *; print(filter_logits(torch.tensor([[2., 1., 0.]]), top_k=2))"
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from shared_data.errors import UserError


def filter_logits(
    logits: Float[Tensor, "B V"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Float[Tensor, "B V"]:
    """Logits of the distribution to draw from; a token that cannot be drawn has -inf. Raises `UserError`."""
    check_sampling(temperature, top_k, top_p)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers(None, logits)


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise `UserError` for a parameter outside of its range."""
    if not temperature > 0:
        raise UserError(
            f"temperature {temperature} is not above 0; raise it, or decode greedily without filters"
        )
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k {top_k} is below 1; raise it, or leave it out to keep every token")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p {top_p} is not in (0, 1]; 0.95 is common, and 1 keeps every token")


def sample(logits: Float[Tensor, "B V"], uniform: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """One id per row by inverse CDF: the first token whose cumulative probability exceeds the uniform number in [0, 1)."""
    cumulative = torch.softmax(logits.double(), dim=-1).cumsum(dim=-1)
    targets = uniform.to(cumulative)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True)[:, 0]
