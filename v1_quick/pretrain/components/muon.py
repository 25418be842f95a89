"""Muon: `torch.optim.Muon` for the hidden matrices, beside `torch.optim.AdamW` for everything else.

The theory is in v2_handwritten/pretrain/components/muon.md. torch's class takes matrices only, and a Trainer takes one optimizer:
here the two share their groups and their state, so that a schedule and a checkpoint see one. torch makes the momentum orthogonal in
bfloat16 on every device; levels 2 and 3 do on a CPU in the type of the parameters.

    optimizer = choose_optimizer(model.library, settings.pretrain)
"""

from typing import Any

import torch
from torch import nn

from shared_data.settings import ChosenOptimizerSettings
from v1_quick.pretrain.components.optimizers import AdamW, parameter_groups

# Modules that read or write tokens, positions and scores; their matrices are tables of vectors and not maps between hidden states.
NOT_HIDDEN = frozenset({"embed_tokens", "lm_head", "wte", "wpe", "score"})


def choose_optimizer(model: nn.Module, section: ChosenOptimizerSettings) -> torch.optim.Optimizer:
    """The optimizer that the settings name, over all of the model that is trained."""
    betas = (section.adam_beta1, section.adam_beta2)
    groups = parameter_groups(model, section.weight_decay)
    if section.optimizer == "adamw":
        return AdamW(groups, section.learning_rate, betas, section.adam_epsilon)
    groups = hidden_apart(groups, model)
    return Muon(groups, section.learning_rate, betas, section.adam_epsilon, section.muon_momentum)


def is_hidden(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon moves this parameter: a matrix between hidden states."""
    return parameter.ndim == 2 and NOT_HIDDEN.isdisjoint(name.split("."))


def hidden_apart(groups: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """The same groups, each without its hidden matrices, and a last one of these, marked `hidden`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    hidden: dict[str, Any] = {"params": [], "hidden": True}
    others = []
    for group in groups:
        kept: dict[str, Any] = {**group, "params": []}
        for parameter in group["params"]:
            target = hidden if is_hidden(names[id(parameter)], parameter) else kept
            target["params"].append(parameter)
            target.setdefault("weight_decay", group["weight_decay"])
        others.append(kept)
    return [*others, hidden] if hidden["params"] else others


class Muon(torch.optim.Optimizer):
    """Muon for the groups marked `hidden`, AdamW for the others, as one optimizer."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        momentum: float = 0.95,
    ) -> None:
        hidden = [group for group in groups if group.get("hidden")]
        others = [group for group in groups if not group.get("hidden")]
        self.parts: list[torch.optim.Optimizer] = [AdamW(others, learning_rate, betas, epsilon)]
        if hidden:
            # Updates as large as AdamW's (Liu et al. 2025), so that both share a learning rate.
            self.parts.append(
                torch.optim.Muon(hidden, lr=learning_rate, momentum=momentum, adjust_lr_fn="match_rms_adamw")
            )
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()
        self.register_load_state_dict_post_hook(lambda _: self._share())  # what was loaded is new

    def _share(self) -> None:
        """Give the parts the groups and the state that this optimizer shows."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self.parts:
            part.step()
        return loss
