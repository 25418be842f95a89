"""How probable a model finds a completion: log p of each of its tokens, in nats. DPO, PPO and GRPO are made of these numbers.

    log p(y) = z_y/τ − log Σ exp(z/τ),    with the logits z one place before the token y and the temperature τ

The fused version (autograd/fused/log_probs.py) also holds the output matrix, and makes the logits again in the backward pass instead
of keeping them. Theory: v2_handwritten/models/log_probs.md.

Level 1: trl's `selective_log_softmax`. Level 2: the same over torch, with mixed precision.

    uv run python -c "import numpy as np; from v3_numpy_deep.models.log_probs import *; print(selected_log_probs(Tensor(np.zeros((1, 2, 8), 'f')), np.array([[1, 2]])))"
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from v3_numpy_deep.autograd import Array, Tensor
from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.autograd.kernels import kernel
from v3_numpy_deep.models.blocks.cross_entropy import soft_capped
from v3_numpy_deep.models.packing import packed_hidden_states
from v3_numpy_deep.models.sharding import rows_in_threads
from v3_numpy_deep.models.transformer import Transformer


def selected_log_probs(
    logits: Float[Tensor, "*rows V"], ids: Int[Array, "*rows"], temperature: float = 1.0
) -> Float[Tensor, "*rows"]:
    """log softmax(z/τ) of all V tokens, and of these the one that came."""
    return ops.log_softmax(logits / temperature)[(*np.indices(ids.shape, sparse=True), ids)]


def linear_log_probs(
    hidden: Float[Tensor, "N C"],
    weight: Float[Tensor, "V C"],
    ids: Int[Array, "N"],
    temperature: float = 1.0,
    softcap: float | None = None,
) -> Float[Tensor, "N"]:
    """`selected_log_probs` of the logits hidden · weightᵀ, soft-capped."""
    return selected_log_probs(soft_capped(hidden @ ops.transpose(weight), softcap), ids, temperature)


@rows_in_threads
def completion_log_probs(
    model: Transformer,
    input_ids: Int[Array, "B T"],
    completion_mask: Int[Array, "B T"] | Bool[Array, "B T"],
    attention_mask: Int[Array, "B T"] | Bool[Array, "B T"] | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, "B T-1"]:
    """Column t is log p(token t+1 | tokens 0…t) where token t+1 belongs to the completion, else 0.

    `completion_mask` is 1 on the tokens of the completion and stands over `input_ids`; the shift by one place happens here, and
    nowhere else. Logits are computed at these places only: not for the prompt, not for padding.
    """
    counted = completion_mask[:, 1:].astype(bool)
    before = np.pad(counted, ((0, 0), (0, 1)))  # one place before each token
    hidden = packed_hidden_states(model, input_ids, attention_mask, logits_to_keep=before)
    log_probs = kernel(model.kernels, linear_log_probs)(
        hidden,
        model.lm_head.weight,
        input_ids[:, 1:][counted],
        temperature,
        model.config.final_logit_softcapping,
    )
    return ops.scatter(log_probs, counted)


def masked_mean(
    x: Float[Tensor, "*shape"], mask: Int[Array, "*shape"] | Bool[Array, "*shape"]
) -> Float[Tensor, ""]:
    """Mean over the places where the mask is 1; 0 if there is none. What stands elsewhere, even NaN, does not count."""
    counted = mask.astype(bool)
    return ops.where(counted, x, 0).sum() / max(1, int(counted.sum()))
