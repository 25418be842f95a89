"""How probable a model finds a completion: log p of each of its tokens, in nats. DPO, PPO and GRPO are made of these numbers.

    log p(y) = z_y/τ - log Σ exp(z/τ),    with the logits z one place before the token y and the temperature τ

The fused version (kernels/fused/log_probs.py) also holds the output matrix, and never has more than a few rows of logits in memory.
Derivation in log_probs.md.

Level 1: trl's `selective_log_softmax`. Level 3: the same over NumPy.

    uv run python -c "import torch; from v2_handwritten.models.log_probs import *; print(selected_log_probs(torch.zeros(1, 2, 8), torch.tensor([[1, 2]])))"
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from v2_handwritten.kernels import kernel
from v2_handwritten.models.blocks.cross_entropy import soft_capped
from v2_handwritten.models.packing import packed_hidden_states
from v2_handwritten.models.transformer import Transformer


def selected_log_probs(
    logits: Float[Tensor, "*rows V"], ids: Int[Tensor, "*rows"], temperature: float = 1.0
) -> Float[Tensor, "*rows"]:
    """log softmax(z/τ) of all V tokens, at least in float32, and of these the one that came."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    shifted = wide - wide.amax(-1, keepdim=True).detach()  # exp cannot overflow; the result does not change
    log_softmax = shifted - shifted.exp().sum(-1, keepdim=True).log()
    return log_softmax.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def linear_log_probs(
    hidden: Float[Tensor, "N C"],
    weight: Float[Tensor, "V C"],
    ids: Int[Tensor, "N"],
    temperature: float = 1.0,
    softcap: float | None = None,
) -> Float[Tensor, "N"]:
    """`selected_log_probs` of the logits hidden · weightᵀ, soft-capped."""
    return selected_log_probs(soft_capped(hidden @ weight.T, softcap), ids, temperature)


def completion_log_probs(
    model: Transformer,
    input_ids: Int[Tensor, "B T"],
    completion_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"],
    attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, "B T-1"]:
    """Column t is log p(token t+1 | tokens 0…t) where token t+1 belongs to the completion, else 0.

    `completion_mask` is 1 on the tokens of the completion and stands over `input_ids`; the shift by one place happens here, and
    nowhere else. Logits are computed at these places only: not for the prompt, not for padding.
    """
    counted = completion_mask[:, 1:].bool()
    before = torch.cat([counted, torch.zeros_like(counted[:, :1])], dim=1)  # one place before each token
    hidden = packed_hidden_states(model, input_ids, attention_mask, logits_to_keep=before)
    dtype = model.compute_dtype or model.lm_head.weight.dtype
    log_probs = kernel(model.kernels, linear_log_probs)(
        hidden.to(dtype),
        model.lm_head.weight.to(dtype),
        input_ids[:, 1:][counted],
        temperature,
        model.config.final_logit_softcapping,
    )
    return torch.zeros_like(counted, dtype=log_probs.dtype).masked_scatter(counted, log_probs)


def masked_mean(
    x: Float[Tensor, "*shape"], mask: Int[Tensor, "*shape"] | Bool[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    """Mean over the places where the mask is 1; 0 if there is none. What stands elsewhere, even NaN, does not count."""
    counted = mask.bool()
    return torch.where(counted, x, 0).sum() / counted.sum().clamp(min=1)
