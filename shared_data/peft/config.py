"""What an adapter is, and how a 4-bit base is stored; the fields of LoRA are PEFT's.

uv run python -c "from shared_data.peft.config import LoraConfig; print(LoraConfig(r=16, lora_alpha=32).scaling)"
"""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from shared_data.errors import UserError
from shared_data.settings import AdapterSettings


@dataclass(frozen=True)
class LoraConfig:
    """What an adapter is."""

    r: int = 8  # columns of B and rows of A
    lora_alpha: float = 16.0  # strength of the update, before the division by r
    lora_dropout: float = 0.0  # of the adapter's input, in training only
    target_modules: tuple[str, ...] | Literal["all-linear"] = ("q_proj", "v_proj")
    use_rslora: bool = False  # divide lora_alpha by √r, not by r
    use_dora: bool = False  # learn the length of each row of the weight apart from its direction
    modules_to_save: tuple[str, ...] = ()  # whole modules that train and are saved beside the adapters

    def __post_init__(self) -> None:
        if self.r < 1:
            raise UserError(f"LoRA of rank r = {self.r} has no weights; choose a rank of at least 1")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(
                f"lora_dropout {self.lora_dropout} is no probability below 1; choose one in [0, 1)"
            )
        both = sorted(set(self.modules_to_save) & set(self.target_modules))
        if both:
            raise UserError(
                f"{both[0]} stands in target_modules and in modules_to_save; a module that trains whole needs no update beside it: choose one"
            )

    @classmethod
    def from_settings(cls, section: AdapterSettings) -> "LoraConfig":
        """The adapter that `[sft.adapter]` of a configuration asks for."""
        values: dict[str, Any] = {field.name: getattr(section, field.name) for field in fields(cls)}
        for name in ("target_modules", "modules_to_save"):
            values[name] = tuple(values[name]) if isinstance(values[name], list) else values[name]
        return cls(**values)

    @property
    def scaling(self) -> float:
        """What the update is multiplied by."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


@dataclass(frozen=True)
class QuantizationConfig:
    """How a base of 4 bits is stored."""

    block_size: int = 64  # weights that share a scale
    double_quantization: bool = True  # store the scales themselves in 8 bits
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"

    def __post_init__(self) -> None:
        if self.block_size not in (32, 64, 128, 256, 512, 1024, 2048, 4096):
            raise UserError(
                f"blocks of {self.block_size} weights are not among 32, 64, 128, … 4096; choose one of these"
            )
