"""The mixture of experts of gpt-oss (OpenAI 2025): biases everywhere, and a gated activation whose inputs are cut off.

    y = Σ_k weight_k · expert_k(x),    expert(x) = ((up + 1) · gate · sigmoid(α gate)) W_down + b_down,    gate, up = x W + b

The gate is cut off above `swiglu_limit`, up on both sides: no activation is so large that a low-precision product loses the others.
With α = 1.702, gate · sigmoid(α gate) is close to a GELU. The weights are a softmax over the logits of the chosen experts, which is the
softmax over all, made to sum to 1. An expert's matrices stand as [in, out], gate and up in alternating columns. Dispatch and
balancing are those of mixture_of_experts.py.

Level 1: transformers' `GptOssMLP`. Level 3: the same over its own autograd.

    uv run python -c "from v2_handwritten.models.blocks.clamped_experts import *; print(clamped_swiglu(torch.tensor([9.0, -9.0]), 1.702, 7.0))"
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shared_data.model_files.config import ModelConfig
from v2_handwritten.models.blocks.linear import linear
from v2_handwritten.models.blocks.mixture_of_experts import Routing, by_expert, softmax_routing


def clamped_swiglu(
    gate_up: Float[Tensor, "*rows twoF"], alpha: float, limit: float
) -> Float[Tensor, "*rows F"]:
    """(up + 1) · gate · sigmoid(α gate), gate and up in alternating columns; min(gate, limit), |up| ≤ limit."""
    gate, up = gate_up[..., ::2].clamp(max=limit), gate_up[..., 1::2].clamp(-limit, limit)
    return (up + 1) * gate * torch.sigmoid(alpha * gate)


class BiasedRouter(nn.Module):
    """One logit an expert, with a bias, in float32 at least, and the choice among them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.num_local_experts, config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.num_local_experts))
        self.num_experts_per_tok = config.num_experts_per_tok

    def forward(self, x: Float[Tensor, "N C"]) -> Routing:
        """Route every row."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        logits = linear(x.to(wide), self.weight.to(wide), self.bias.to(wide))
        return softmax_routing(logits, self.num_experts_per_tok, norm_topk_prob=True)


class ClampedExperts(nn.Module):
    """The matrices and biases of all experts."""

    compute_dtype: torch.dtype | None = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, C, F = config.num_local_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.zeros(E, C, 2 * F))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(E, 2 * F))
        self.down_proj = nn.Parameter(torch.zeros(E, F, C))
        self.down_proj_bias = nn.Parameter(torch.zeros(E, C))
        self.alpha, self.limit = config.swiglu_alpha, config.swiglu_limit

    def forward(
        self, x: Float[Tensor, "N C"], weights: Float[Tensor, "N k"], experts: Int[Tensor, "N k"]
    ) -> Float[Tensor, "N C"]:
        """Each row through its experts, whose outputs are weighted and added up."""
        dtype = self.compute_dtype or self.gate_up_proj.dtype
        if not len(x):  # a thread or a row without a target
            return x
        order, load = by_expert(experts, len(self.gate_up_proj))
        parts = x.to(dtype)[order // experts.shape[1]].split(load)
        # `unbind`, as in `expert_mixture`: one gradient for the matrices of all experts.
        matrices = (
            parameter.to(dtype).unbind()
            for parameter in (
                self.gate_up_proj,
                self.gate_up_proj_bias,
                self.down_proj,
                self.down_proj_bias,
            )
        )
        outputs = [
            clamped_swiglu(rows @ gate_up + gate_up_bias, self.alpha, self.limit) @ down + down_bias
            for rows, gate_up, gate_up_bias, down, down_bias in zip(parts, *matrices, strict=True)
            if len(rows)
        ]
        of_token = torch.cat(outputs)[order.argsort()].view(*experts.shape, -1)  # [N, k, C]
        return (weights.to(dtype)[..., None] * of_token).sum(1)


class ClampedMixture(nn.Module):
    """Router and experts, under gpt-oss's names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.router = BiasedRouter(config)
        self.experts = ClampedExperts(config)

    def forward(
        self, x: Float[Tensor, "*rows C"], routings: list[Routing] | None = None
    ) -> Float[Tensor, "*rows C"]:
        """The weighted sum of the chosen experts. The routing is added to `routings`."""
        rows = x.reshape(-1, x.shape[-1])
        routing = self.router(rows)
        if routings is not None:
            routings.append(routing)
        return self.experts(rows, routing.weights, routing.experts).view(x.shape)
