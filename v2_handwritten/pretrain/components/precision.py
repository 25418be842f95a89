"""Mixed precision by hand: matrix products in 16 bits, everything that sums or divides in 32 (Micikevicius et al. 2018).

The weights stay float32 (the "master copy") and are cast for each product; `Transformer.compute_dtype` does that. bfloat16
has float32's range and needs nothing else. float16 loses gradients below 6e-8, so the loss is multiplied by a large scale
before the backward pass and the gradients are divided by it after (section 3.2). `LossScaler` finds the scale as it goes.

Level 1: `TrainingArguments(bf16=True)` or `fp16=True`, that is torch's autocast and GradScaler. Level 3 has float32 only.

    scaler = LossScaler(enabled=True); (loss * scaler.scale).backward(); scaler.unscale(parameters)
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from shared_data.errors import UserError
from shared_data.settings import OptimizerSettings


def compute_dtype(section: OptimizerSettings, device: torch.device) -> torch.dtype | None:
    """The type of matrix products for the settings `bf16` and `fp16`; None is that of the weights.

    Raises `UserError` for bfloat16 on a GPU that has no instructions for it.
    """
    if section.bf16 and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError(f"this GPU has no bfloat16; use --set {section.stage}.fp16=true instead of bf16")
    return torch.bfloat16 if section.bf16 else torch.float16 if section.fp16 else None


class LossScaler:
    """The dynamic loss scale of float16: halve it after an overflow, double it after 2000 steps without one.

    The constants are those of torch's `GradScaler`. Powers of two change no digit of a gradient, only its exponent.
    """

    def __init__(self, enabled: bool, initial_scale: float = 2.0**16, growth_interval: int = 2000) -> None:
        self.enabled = enabled
        self.scale = initial_scale if enabled else 1.0
        self.growth_interval = growth_interval
        self.steps_without_overflow = 0

    @torch.no_grad()
    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divide all gradients by the scale, in place."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.enabled and gradients:
            torch._foreach_mul_(gradients, 1 / self.scale)

    def update(self, overflow: bool) -> None:
        """Adapt the scale after a step. Raises `UserError` when no scale helps: the gradients themselves are not finite."""
        if not self.enabled:
            return
        self.steps_without_overflow = 0 if overflow else self.steps_without_overflow + 1
        if overflow:
            self.scale /= 2
        elif self.steps_without_overflow == self.growth_interval:
            self.scale, self.steps_without_overflow = self.scale * 2, 0
        if self.scale < 2.0**-14:
            raise UserError(
                "the gradients overflow float16 at every loss scale; lower the learning rate, or use bf16 instead of fp16"
            )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON; empty where there is no scaling."""
        if not self.enabled:
            return {}
        return {"scale": self.scale, "steps_without_overflow": self.steps_without_overflow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the scale of the checkpoint."""
        if self.enabled and state:
            self.scale, self.steps_without_overflow = state["scale"], state["steps_without_overflow"]
