"""LoRA, rsLoRA and DoRA: PEFT's `LoraConfig`, `get_peft_model`, and the methods of its `PeftModel`.

python -c "from v1_quick.finetune.peft.lora import *; from v1_quick.models.transformer import Transformer; from transformers import LlamaConfig; print(len(inject_lora(Transformer(LlamaConfig(num_hidden_layers=1)), LoraConfig(), seed=0)))"
"""

import math
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from shared_data.errors import UserError
from v1_quick.models.transformer import Transformer


@dataclass(frozen=True)
class LoraConfig:
    """What an adapter is; the same fields at all levels."""

    rank: int = 8  # columns of B and rows of A
    alpha: float = 16.0  # strength of the update, before the division by the rank
    dropout: float = 0.0  # of the adapter's input, in training only
    target_modules: tuple[str, ...] | Literal["all-linear"] = ("q_proj", "v_proj")
    use_rslora: bool = False  # divide alpha by √rank, not by the rank
    use_dora: bool = False  # learn the length of each row of the weight apart from its direction
    modules_to_save: tuple[str, ...] = ()  # whole modules that train and are saved beside the adapters

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"LoRA of rank {self.rank} has no weights; choose a rank of at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"LoRA dropout {self.dropout} is no probability below 1; choose one in [0, 1)")
        both = sorted(set(self.modules_to_save) & set(self.target_modules))
        if both:
            raise UserError(
                f"{both[0]} stands in target_modules and in modules_to_save; a module that trains whole needs no update beside it: choose one"
            )


def initial_down_projection(path: str, rank: int, in_features: int, seed: int) -> np.ndarray:
    """Uniform in ±1/√in_features [rank, in_features], as PEFT draws it; the same numbers at all levels."""
    bound = 1 / math.sqrt(in_features)
    generator = np.random.default_rng([seed, zlib.crc32(path.encode())])
    return generator.uniform(-bound, bound, (rank, in_features)).astype(np.float32)


def inject_lora(
    model: Transformer, config: LoraConfig, seed: int, name: str = "default"
) -> list[nn.Parameter]:
    """Hang a new adapter on the model, make it the active one, and return its parameters: the only ones that train."""
    library: Any = model.library
    _check_modules_to_save(model, config)
    settings = _library_config(model, config)
    try:
        if isinstance(library, peft.PeftModel):
            library.add_adapter(name, settings)
        else:
            model.library = peft.get_peft_model(library, settings, adapter_name=name)
    except ValueError as error:  # no such target, or a name that is taken
        raise UserError(f"PEFT cannot add the adapter {name!r} ({error}); choose another one") from error
    for path, module in model.library.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and name in module.lora_A:
            weight: Any = module.lora_A[name].weight
            rank, in_features = weight.shape
            numbers = initial_down_projection(path, rank, in_features, seed)
            weight.data.copy_(torch.from_numpy(numbers))
    model.train(model.training)  # PEFT's new modules are in training mode, whatever the model's
    set_adapter(model, name)
    return lora_parameters(model)


def set_adapter(model: Transformer, name: str | None) -> None:
    """Make one adapter the active one, and the only thing that trains; None: the base alone."""
    known = list(getattr(model.library, "peft_config", {}))
    if name is not None and name not in known:
        raise UserError(f"the model has no adapter {name!r}; it has {', '.join(known) or 'none'}")
    if not known:
        return
    tuner: Any = model.library.base_model
    if name is None:
        tuner.disable_adapter_layers()
    else:
        tuner.enable_adapter_layers()
        model.library.set_adapter(name)


def lora_parameters(model: Transformer) -> list[nn.Parameter]:
    """The parameters of the active adapter."""
    return [parameter for parameter in model.library.parameters() if parameter.requires_grad]


def merge_lora(model: Transformer) -> None:
    """Add the active adapter to the weights. Merging again changes nothing but a warning."""
    model.library.merge_adapter()


def unmerge_lora(model: Transformer) -> None:
    """Subtract it again: equal up to rounding, where the other levels keep the base's bits."""
    model.library.unmerge_adapter()


def _check_modules_to_save(model: Transformer, config: LoraConfig) -> None:
    """PEFT would pass over a name that no module has, and would bring any module that has it."""
    paths = ("transformer.wte" if model.config.model_type == "gpt2" else "model.embed_tokens", "lm_head")
    for name in config.modules_to_save:
        if not any(f".{path}".endswith(f".{name}") for path in paths):
            choices = ", ".join(path.rpartition(".")[2] for path in paths)
            raise UserError(f"modules_to_save: an adapter cannot bring {name!r}; choose among {choices}")


def _library_config(model: Transformer, config: LoraConfig) -> peft.LoraConfig:
    """Our settings under PEFT's names. GPT-2's `Conv1D` keeps its weight as [in, out], which PEFT wants to be told."""
    targets, whole = config.target_modules, list(config.modules_to_save)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT computes with any number
        lora_dropout=config.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        modules_to_save=whole or None,
        ensure_weight_tying=bool(whole) and model.config.tie_word_embeddings,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.library.modules()),
        task_type="CAUSAL_LM",
    )
    _name_tied_modules(settings)
    return settings


def _name_tied_modules(settings: Any) -> None:
    """Name the output matrix beside the embedding that it is tied to; PEFT then copies one for both, and takes the name out again.

    Without it, PEFT 0.21.2 would not tie GPT-2's "wte", a name it does not know; loading, it would write "lm_head" to the base.
    """
    whole = settings.modules_to_save
    if whole and settings.ensure_weight_tying and "lm_head" not in whole:
        whole.append("lm_head")
