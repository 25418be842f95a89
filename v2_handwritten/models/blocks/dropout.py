"""Dropout (Srivastava et al. 2014): zero each number with probability p, scale the rest by 1/(1 - p), while training.

The scale keeps the expected value, so that nothing changes at test time. Every model draws from a generator of its own
(`Transformer.dropout_generator`), whose state belongs to the training state: a resumed run draws the same masks.

Level 1: `torch.nn.Dropout` inside the library. Level 3: the same function with a NumPy generator.

    uv run python -c "import torch; from v2_handwritten.models.blocks.dropout import dropout; print(dropout(torch.ones(8), 0.5, True))"
"""

import torch
from jaxtyping import Float
from torch import Tensor


def dropout(
    x: Float[Tensor, "*shape"], p: float, training: bool, generator: torch.Generator | None = None
) -> Float[Tensor, "*shape"]:
    """x with each element zeroed with probability p and the others divided by 1 - p; x itself when not training."""
    if p == 0.0 or not training:
        return x
    keep = torch.empty_like(x).bernoulli_(1 - p, generator=generator)
    return x * keep.div_(1 - p)
