"""The mixture of experts of gpt-oss (OpenAI 2025): biases everywhere, and a gated activation whose inputs are cut off.

    y = Σ_k weight_k · expert_k(x),    expert(x) = ((up + 1) · gate · sigmoid(α gate)) W_down + b_down,    gate, up = x W + b

The gate is cut off above `swiglu_limit`, up on both sides; where they are, no gradient flows. The weights are a softmax over the logits
of the chosen experts, which is the softmax over all, made to sum to 1. An expert's matrices stand as [in, out], gate and up in
alternating columns. Dispatch and balancing are those of mixture_of_experts.py.

Level 1: transformers' `GptOssMLP`. Level 2: the same over torch.

    uv run python -c "from v3_numpy_deep.models.blocks.clamped_experts import *; print(clamped_swiglu(Tensor([9.0, -9.0]), 1.702, 7.0))"
"""

import numpy as np
from jaxtyping import Float, Int

from shared_data.model_files.config import ModelConfig
from v3_numpy_deep.autograd import Array, Module, Parameter, Tensor
from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.models.blocks.linear import linear
from v3_numpy_deep.models.blocks.mixture_of_experts import Routing, by_expert, softmax_routing


def clamped_swiglu(
    gate_up: Float[Tensor, "*rows twoF"], alpha: float, limit: float
) -> Float[Tensor, "*rows F"]:
    """(up + 1) · gate · sigmoid(α gate), gate and up in alternating columns; min(gate, limit), |up| ≤ limit."""
    gate, up = ops.minimum(gate_up[..., ::2], limit), ops.clip(gate_up[..., 1::2], -limit, limit)
    return (up + 1.0) * gate * ops.sigmoid(alpha * gate)


class BiasedRouter(Module):
    """One logit an expert, with a bias, and the choice among them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = Parameter(np.zeros((config.num_local_experts, config.hidden_size), np.float32))
        self.bias = Parameter(np.zeros(config.num_local_experts, np.float32))
        self.num_experts_per_tok = config.num_experts_per_tok

    def forward(self, x: Float[Tensor, "N C"]) -> Routing:
        """Route every row."""
        return softmax_routing(
            linear(x, self.weight, self.bias), self.num_experts_per_tok, norm_topk_prob=True
        )


class ClampedExperts(Module):
    """The matrices and biases of all experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, C, F = config.num_local_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = Parameter(np.zeros((E, C, 2 * F), np.float32))
        self.gate_up_proj_bias = Parameter(np.zeros((E, 2 * F), np.float32))
        self.down_proj = Parameter(np.zeros((E, F, C), np.float32))
        self.down_proj_bias = Parameter(np.zeros((E, C), np.float32))
        self.alpha, self.limit = config.swiglu_alpha, config.swiglu_limit

    def forward(
        self, x: Float[Tensor, "N C"], weights: Float[Tensor, "N k"], experts: Int[Array, "N k"]
    ) -> Float[Tensor, "N C"]:
        """Each row through its experts, whose outputs are weighted and added up."""
        if not len(x):  # a thread or a row without a target
            return x
        order, load = by_expert(experts, len(self.gate_up_proj))
        outputs = []
        for e, rows in enumerate(ops.split(x[order // experts.shape[1]], load, axis=0)):
            if len(rows):
                gate_up = rows @ self.gate_up_proj[e] + self.gate_up_proj_bias[e]
                hidden = clamped_swiglu(gate_up, self.alpha, self.limit)
                outputs.append(hidden @ self.down_proj[e] + self.down_proj_bias[e])
        of_token = ops.concatenate(outputs)[np.argsort(order)].reshape(*experts.shape, -1)  # [N, k, C]
        return (weights.reshape(*weights.shape, 1) * of_token).sum(axis=1)


class ClampedMixture(Module):
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
        return self.experts(rows, routing.weights, routing.experts).reshape(*x.shape)
