"""Mixture of experts: E feed-forward layers, of which a router chooses k for each token.

    y = Σ_k weight_k · SwiGLU_expert_k(x)        Shazeer et al. 2017, equation 1; Jiang et al. 2024 (Mixtral), section 2.1

The router is a softmax (Mixtral, Qwen3) or a sigmoid for each expert (DeepSeek-V3, section 2.1.2). Two ways keep the experts equally
busy: a loss (Fedus et al. 2021, equations 4 to 6), or a bias that takes part in the choice alone (Wang et al. 2024, algorithm 1). The
choice is made on arrays, outside the history: it has no derivative. A faster `expert_mixture` with a derivative of its own stands in
autograd/fused/mixture_of_experts.py.

Level 1: transformers' `MixtralSparseMoeBlock`, `Qwen3MoeSparseMoeBlock`, `DeepseekV3MoE`. Level 2: the same over torch.

    uv run python -c "from v3_numpy_deep.models.blocks.mixture_of_experts import *; print(softmax_routing(Tensor([[1.0, 3, 2]]), 2, True))"
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from shared_data.model_files.config import ModelConfig
from v3_numpy_deep.autograd import Array, Module, Parameter, Tensor
from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.autograd.kernels import kernel
from v3_numpy_deep.models.blocks.feed_forward import LlamaFeedForward, swiglu
from v3_numpy_deep.models.blocks.linear import linear


@dataclass
class Routing:
    """The router's decision for N tokens: a logit for each of E experts, and the ids and weights of the k it chose."""

    logits: Float[Tensor, "N E"]
    weights: Float[Tensor, "N k"]
    experts: Int[Array, "N k"]


def softmax_routing(logits: Float[Tensor, "N E"], num_experts_per_tok: int, norm_topk_prob: bool) -> Routing:
    """The k most probable experts, weighted by their probabilities, which `norm_topk_prob` makes sum to 1."""
    probabilities = ops.softmax(logits)
    experts = _largest(probabilities.data, num_experts_per_tok)
    weights = _chosen(probabilities, experts)
    if norm_topk_prob:
        weights = weights / weights.sum(axis=-1, keepdims=True)
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
    scores = ops.sigmoid(logits)
    choice = scores.data + bias.data
    if n_group > 1:
        choice = np.where(_in_best_groups(choice, n_group, topk_group), choice, -np.inf)
    experts = _largest(choice, num_experts_per_tok)
    weights = _chosen(scores, experts)
    if norm_topk_prob:
        weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
    return Routing(logits, weights * routed_scaling_factor, experts)


def _in_best_groups(choice: Float[Array, "N E"], n_group: int, topk_group: int) -> Bool[Array, "N E"]:
    """Whether an expert belongs to one of the best groups of its token."""
    groups = choice.reshape(len(choice), n_group, -1)
    best = _largest(np.sort(groups, axis=-1)[..., -2:].sum(axis=-1), topk_group)
    kept = (best[:, :, None] == np.arange(n_group)).any(axis=1)
    return kept.repeat(groups.shape[-1], axis=-1)


def _largest(values: Float[Array, "N n"], k: int) -> Int[Array, "N k"]:
    """Where the k largest of each row stand, in falling order; the first of equals. (torch's `topk` takes any of equals.)"""
    return np.argsort(-values, axis=-1, kind="stable")[:, :k]


def _chosen(values: Float[Tensor, "N E"], experts: Int[Array, "N k"]) -> Float[Tensor, "N k"]:
    """The values of the chosen experts; only these receive a gradient."""
    return values[np.arange(len(experts))[:, None], experts]


def load_balancing_loss(routings: Sequence[Routing], num_experts: int) -> Float[Tensor, ""]:
    """E Σ_e f_e P_e over the tokens of all layers together: k where all experts are equally busy, more where they are not.

    f_e is the share of tokens that chose e (these sum to k), P_e the mean probability of e. f has no derivative; P pulls.
    """
    probabilities = ops.softmax(ops.concatenate([routing.logits for routing in routings]))
    experts = np.concatenate([routing.experts.reshape(-1) for routing in routings])
    chosen = np.bincount(experts, minlength=num_experts).astype(probabilities.dtype) / len(probabilities)
    return num_experts * (chosen * probabilities.mean(axis=0)).sum()


def updated_bias(bias: Float[Tensor, "E"], load: Num[Array, "E"], speed: float) -> Float[Tensor, "E"]:
    """b + speed · sign(mean load - load): the experts that had too few tokens become more attractive."""
    # Times E, so that whole numbers decide where the load is exactly the mean.
    direction = np.sign(load.sum() - len(load) * load)
    return Tensor(bias.data + speed * direction.astype(bias.dtype))


def by_expert(experts: Int[Array, "N k"], num_experts: int) -> tuple[Int[Array, "Nk"], list[int]]:
    """The assignments (token n to its choice j has the number n k + j) in the order of their experts, and each expert's load."""
    assigned = experts.reshape(-1)
    return np.argsort(assigned, kind="stable"), np.bincount(assigned, minlength=num_experts).tolist()


def expert_mixture(
    x: Float[Tensor, "N C"],
    weights: Float[Tensor, "N k"],
    experts: Int[Array, "N k"],
    gate_up_proj: Float[Tensor, "E twoF C"],
    down_proj: Float[Tensor, "E C F"],
) -> Float[Tensor, "N C"]:
    """Σ_k weight · SwiGLU_expert(x): an expert computes the tokens that chose it; one that nobody chose costs nothing."""
    if not len(x):  # a thread or a row without a target
        return x
    order, load = by_expert(experts, len(gate_up_proj))
    parts = ops.split(x[order // experts.shape[1]], load, axis=0)
    outputs = [  # a slice such as gate_up_proj[e] sends back only its part of the gradient (`Part` in the engine)
        swiglu(rows @ ops.transpose(gate_up_proj[e])) @ ops.transpose(down_proj[e])
        for e, rows in enumerate(parts)
        if len(rows)
    ]
    of_token = ops.concatenate(outputs)[np.argsort(order)].reshape(*experts.shape, -1)  # [N, k, C]
    return (weights.reshape(*weights.shape, 1) * of_token).sum(axis=1)


class Router(Module):
    """One logit an expert, and the choice among them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E = config.num_local_experts
        self.config = config
        self.weight = Parameter(np.zeros((E, config.hidden_size), np.float32))
        # A parameter, so that it has a name in a checkpoint; no optimizer moves it.
        if config.scoring_func == "sigmoid":
            self.e_score_correction_bias = Parameter(np.zeros(E, np.float32), requires_grad=False)
            # The tokens of each expert since the last `update_bias`; no part of a checkpoint.
            self.load = np.zeros(E, np.int64)

    def forward(self, x: Float[Tensor, "N C"]) -> Routing:
        """Route every row."""
        config, logits = self.config, linear(x, self.weight)
        k, norm = config.num_experts_per_tok, config.norm_topk_prob
        if config.scoring_func == "softmax":
            return softmax_routing(logits, k, norm)
        bias, factor = self.e_score_correction_bias, config.routed_scaling_factor
        routing = sigmoid_routing(logits, bias, k, norm, factor, config.n_group, config.topk_group)
        if self.training:
            self.load += np.bincount(routing.experts.reshape(-1), minlength=len(bias))
        return routing


class Experts(Module):
    """The matrices of all experts: gate above up [E, 2F, C], and down [E, C, F]."""

    kernels = "fused"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, C, F = config.num_local_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = Parameter(np.zeros((E, 2 * F, C), np.float32))
        self.down_proj = Parameter(np.zeros((E, C, F), np.float32))

    def forward(
        self, x: Float[Tensor, "N C"], weights: Float[Tensor, "N k"], experts: Int[Array, "N k"]
    ) -> Float[Tensor, "N C"]:
        """Each row through its experts."""
        return kernel(self.kernels, expert_mixture)(x, weights, experts, self.gate_up_proj, self.down_proj)


class MixtureOfExperts(Module):
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
        return y.reshape(*x.shape)

    def update_bias(self, speed: float) -> None:
        """After an optimizer step: balance by the load since the last call, and count anew."""
        bias, load = self.gate.e_score_correction_bias, self.gate.load
        bias.data[...] = updated_bias(bias, load, speed).data
        load[...] = 0
