"""Mixture of experts: E feed-forward layers, of which a router chooses k for each token.

    y = Σ_k weight_k · SwiGLU_expert_k(x)        Shazeer et al. 2017, equation 1; Jiang et al. 2024 (Mixtral), section 2.1

The router is a softmax (Mixtral, Qwen3) or a sigmoid for each expert (DeepSeek-V3, section 2.1.2). Two ways keep the experts equally
busy: a loss (Fedus et al. 2021, equations 4 to 6), or a bias that takes part in the choice alone (Wang et al. 2024, algorithm 1). A
faster `expert_mixture`, with the derivative by hand, stands in kernels/fused/mixture_of_experts.py. Theory: mixture_of_experts.md.

Level 1: transformers' `MixtralSparseMoeBlock`, `Qwen3MoeSparseMoeBlock`, `DeepseekV3MoE`. Level 3: the same over its own autograd.

    uv run python -c "from v2_handwritten.models.blocks.mixture_of_experts import *; print(softmax_routing(torch.tensor([[1.0, 3, 2]]), 2, True))"
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from shared_data.model_files.config import ModelConfig
from v2_handwritten.kernels import kernel
from v2_handwritten.models.blocks.attention import softmax
from v2_handwritten.models.blocks.feed_forward import LlamaFeedForward, swiglu
from v2_handwritten.models.blocks.linear import linear


@dataclass
class Routing:
    """The router's decision for N tokens: a logit for each of E experts, and the ids and weights of the k it chose."""

    logits: Float[Tensor, "N E"]
    weights: Float[Tensor, "N k"]
    experts: Int[Tensor, "N k"]


def softmax_routing(logits: Float[Tensor, "N E"], num_experts_per_tok: int, norm_topk_prob: bool) -> Routing:
    """The k most probable experts, weighted by their probabilities, which `norm_topk_prob` makes sum to 1. Float32 at least."""
    weights, experts = softmax(logits).topk(num_experts_per_tok, dim=-1)
    if norm_topk_prob:
        weights = weights / weights.sum(-1, keepdim=True)
    return Routing(logits, weights, experts)


def sigmoid_routing(
    logits: Float[Tensor, "N E"],
    bias: Float[Tensor, "E"],
    num_experts_per_tok: int,
    norm_topk_prob: bool = True,
    routed_scaling_factor: float = 1.0,
    n_group: int = 1,
    topk_group: int = 1,
) -> Routing:
    """The k largest of score + bias, weighted by their scores alone. DeepSeek-AI 2024, equations 13 to 16.

    The experts form `n_group` groups of neighbours; a token may choose from the `topk_group` groups whose two best sum highest.
    """
    scores = torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    choice = scores.detach() + bias
    if n_group > 1:
        choice = _only_best_groups(choice, n_group, topk_group)
    experts = choice.topk(num_experts_per_tok, dim=-1).indices
    weights = scores.gather(-1, experts)
    if norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return Routing(logits, weights * routed_scaling_factor, experts)


def _only_best_groups(choice: Float[Tensor, "N E"], n_group: int, topk_group: int) -> Float[Tensor, "N E"]:
    """-∞ for the experts of all other groups."""
    groups = choice.unflatten(-1, (n_group, -1))
    best = groups.topk(2, dim=-1).values.sum(-1).topk(topk_group, dim=-1).indices
    others = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter(-1, best, False)
    return groups.masked_fill(others[..., None], -torch.inf).flatten(-2)


def load_balancing_loss(routings: Sequence[Routing], num_experts: int) -> Float[Tensor, ""]:
    """E Σ_e f_e P_e over the tokens of all layers together: k where all experts are equally busy, more where they are not.

    f_e is the share of tokens that chose e (these sum to k), P_e the mean probability of e. f has no derivative; P pulls.
    """
    probabilities = torch.cat([softmax(routing.logits) for routing in routings])
    experts = torch.cat([routing.experts.flatten() for routing in routings])
    chosen = experts.bincount(minlength=num_experts).to(probabilities.dtype) / len(probabilities)
    return num_experts * (chosen * probabilities.mean(0)).sum()


def updated_bias(bias: Float[Tensor, "E"], load: Num[Tensor, "E"], speed: float) -> Float[Tensor, "E"]:
    """b + speed · sign(mean load - load): the experts that had too few tokens become more attractive."""
    # Times E, so that whole numbers decide where the load is exactly the mean.
    return bias + speed * torch.sign(load.sum() - len(load) * load).to(bias.dtype)


def by_expert(experts: Int[Tensor, "N k"], num_experts: int) -> tuple[Int[Tensor, "Nk"], list[int]]:
    """The assignments (token n to its choice j has the number n k + j) in the order of their experts, and each expert's load."""
    assigned = experts.flatten()
    return assigned.argsort(stable=True), assigned.bincount(minlength=num_experts).tolist()


def expert_mixture(
    x: Float[Tensor, "N C"],
    weights: Float[Tensor, "N k"],
    experts: Int[Tensor, "N k"],
    gate_up_proj: Float[Tensor, "E twoF C"],
    down_proj: Float[Tensor, "E C F"],
) -> Float[Tensor, "N C"]:
    """Σ_k weight · SwiGLU_expert(x): an expert computes the tokens that chose it; one that nobody chose costs nothing."""
    if not len(x):  # a thread or a row without a target
        return x
    order, load = by_expert(experts, len(gate_up_proj))
    parts = x[order // experts.shape[1]].split(load)
    # `gate_up_proj[e]` would have a gradient of the size of all experts, for each e; `unbind` has one for all.
    matrices = zip(parts, gate_up_proj.unbind(), down_proj.unbind(), strict=True)
    outputs = [swiglu(rows @ gate_up.T) @ down.T for rows, gate_up, down in matrices if len(rows)]
    of_token = torch.cat(outputs)[order.argsort()].view(*experts.shape, -1)  # [N, k, C]
    return (weights[..., None] * of_token).sum(1)


class Router(nn.Module):
    """One logit an expert, in float32 at least, and the choice among them."""

    e_score_correction_bias: Tensor  # [E], sigmoid only
    # [E], the tokens of each expert since the last `update_bias`; no part of a checkpoint.
    load: Tensor | None = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E = config.num_local_experts
        self.config = config
        self.weight = nn.Parameter(torch.zeros(E, config.hidden_size))
        if config.scoring_func == "sigmoid":
            self.register_buffer("e_score_correction_bias", torch.zeros(E))

    def forward(self, x: Float[Tensor, "N C"]) -> Routing:
        """Route every row."""
        config, wide = self.config, torch.promote_types(self.weight.dtype, torch.float32)
        logits, k = linear(x.to(wide), self.weight.to(wide)), config.num_experts_per_tok
        if config.scoring_func == "softmax":
            return softmax_routing(logits, k, config.norm_topk_prob)
        groups = (config.n_group, config.topk_group)
        factor, bias = config.routed_scaling_factor, self.e_score_correction_bias
        routing = sigmoid_routing(logits, bias, k, config.norm_topk_prob, factor, *groups)
        if self.training:
            counts = routing.experts.flatten().bincount(minlength=len(bias))
            self.load = counts if self.load is None else self.load + counts
        return routing


class Experts(nn.Module):
    """The matrices of all experts: gate above up [E, 2F, C], and down [E, C, F]."""

    kernels = "fused"
    compute_dtype: torch.dtype | None = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, C, F = config.num_local_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.zeros(E, 2 * F, C))
        self.down_proj = nn.Parameter(torch.zeros(E, C, F))

    def forward(
        self, x: Float[Tensor, "N C"], weights: Float[Tensor, "N k"], experts: Int[Tensor, "N k"]
    ) -> Float[Tensor, "N C"]:
        """Each row through its experts."""
        dtype = self.compute_dtype or self.gate_up_proj.dtype
        matrices = self.gate_up_proj.to(dtype), self.down_proj.to(dtype)
        return kernel(self.kernels, expert_mixture)(x.to(dtype), weights.to(dtype), experts, *matrices)


class MixtureOfExperts(nn.Module):
    """Router, experts and, in DeepSeek-V3, a shared expert that reads every token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.is_balanced_by_bias = config.scoring_func == "sigmoid"
        self.gate = Router(config)
        self.experts = Experts(config)
        shared = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = LlamaFeedForward(config, shared) if shared else None

    def forward(
        self, x: Float[Tensor, "*rows C"], routings: list[Routing] | None = None
    ) -> Float[Tensor, "*rows C"]:
        """The weighted sum of the chosen experts, and of the shared one. The routing is added to `routings`."""
        rows = x.reshape(-1, x.shape[-1])
        routing = self.gate(rows)
        if routings is not None:
            routings.append(routing)
        y = self.experts(rows, routing.weights, routing.experts)
        if self.shared_experts is not None:
            y = y + self.shared_experts(rows)
        return y.view(x.shape)

    @torch.no_grad()
    def update_bias(self, speed: float) -> None:
        """After an optimizer step: balance by the load since the last call, and count anew."""
        bias, load = self.gate.e_score_correction_bias, self.gate.load
        if load is not None:
            bias.copy_(updated_bias(bias, load, speed))
        self.gate.load = None
