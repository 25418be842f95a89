"""Dropout (Srivastava et al. 2014): zero each number with probability p, scale the rest by 1/(1 - p), while training.

The scale keeps the expected value, so that nothing changes at test time. Every model draws from a generator of its own
(`Transformer.dropout_generator`), whose state belongs to the training state: a resumed run draws the same masks.

Level 1: `torch.nn.Dropout` inside the library. Level 2: the same function with a torch generator.

    uv run python -c "import numpy as np; from v3_numpy_deep.models.blocks.dropout import *; print(dropout(Tensor(np.ones(8, 'f')), 0.5, True))"
"""

import numpy as np
from jaxtyping import Float

from v3_numpy_deep.autograd import Tensor


def dropout(
    x: Float[Tensor, "*shape"], p: float, training: bool, generator: np.random.Generator | None = None
) -> Float[Tensor, "*shape"]:
    """x with each element zeroed with probability p and the others divided by 1 - p; x itself when not training."""
    if p == 0.0 or not training:
        return x
    generator = np.random.default_rng() if generator is None else generator
    keep = (generator.random(x.shape, dtype=np.float32) >= p).astype(x.dtype)
    keep /= 1 - p
    return x * keep
