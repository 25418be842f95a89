"""Muon: `torch.optim.Muon` for the matrices between hidden states, beside `torch.optim.AdamW` for everything else.

The theory is in v2_handwritten/pretrain/components/muon.md. torch's class takes matrices only, and a `Trainer` takes one optimizer:
here the two share their groups and their state, so that a schedule and a checkpoint see one. torch makes the momentum orthogonal in
bfloat16 on every device; levels 2 and 3 do on a CPU in the type of the parameters.

    trainer = Trainer(model, arguments, optimizers=(make_optimizer(model, settings.pretrain), None))
"""

from typing import Any

import torch
from torch import nn

from shared_data.settings import OptimizerSettings

# Modules that read or write tokens, positions and scores; their matrices are tables of vectors and not maps between hidden states.
NOT_HIDDEN = frozenset({"embed_tokens", "lm_head", "wte", "wpe", "score"})


def make_optimizer(model: nn.Module, section: OptimizerSettings) -> torch.optim.Optimizer | None:
    """The optimizer for a trainer's `optimizers=(…, None)`; None for `optim = "adamw"`, which the trainer makes itself."""
    if section.optim == "adamw":
        return None
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    hidden = [p for name, p in parameters.items() if is_hidden(name, p)]
    tables = [p for name, p in parameters.items() if p.ndim >= 2 and not is_hidden(name, p)]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    adamw = torch.optim.AdamW(
        [
            {"params": tables, "weight_decay": section.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=section.learning_rate,
        betas=(section.adam_beta1, section.adam_beta2),
        eps=section.adam_epsilon,
    )
    muon = torch.optim.Muon(
        hidden,
        lr=section.learning_rate,
        weight_decay=section.weight_decay,
        momentum=section.muon_momentum,
        adjust_lr_fn="match_rms_adamw",  # updates as large as AdamW's (Liu et al. 2025), so that both share a learning rate
    )
    return CombinedOptimizer(adamw, muon)


def is_hidden(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon moves this parameter: a matrix between hidden states."""
    return parameter.ndim == 2 and NOT_HIDDEN.isdisjoint(name.split("."))


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimizers as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.share()
        self.register_load_state_dict_post_hook(lambda _: self.share())  # what was loaded is new

    def share(self) -> None:
        """Let the parts use the groups and the state that this optimizer shows."""
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
