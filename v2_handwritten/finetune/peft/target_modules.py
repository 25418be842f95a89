"""Which layers an adapter or a quantizer takes the place of: all matrix products of the blocks, or those that are named.

A target is the last part of a layer's path, or several: "q_proj", "mlp.c_proj". This is PEFT's rule (`target_modules`), and
so is "all-linear": every linear layer but the output matrix (`lm_head`, `score`), which the loss reads directly.

Level 1: PEFT finds them. Level 3: the same functions over its own modules.

    python -c "from v2_handwritten.models.transformer import *; from v2_handwritten.finetune.peft.target_modules import *; print([p.path for p in select_layers(Transformer(ModelConfig()), ['q_proj'])])"
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from shared_data.errors import UserError
from v2_handwritten.models.blocks.linear import Conv1D, Linear

_OUTPUT_LAYERS = ("lm_head", "score")


@dataclass(frozen=True)
class LayerPlace:
    """Where a linear layer hangs in the tree of modules: `parent.attribute`, by its full name `path`."""

    path: str
    parent: nn.Module
    attribute: str

    @property
    def layer(self) -> nn.Module:
        """What is there now."""
        return getattr(self.parent, self.attribute)

    def replace(self, layer: nn.Module) -> None:
        """Put another layer there."""
        setattr(self.parent, self.attribute, layer)


def linear_layers(model: nn.Module) -> list[LayerPlace]:
    """The linear layers of the blocks, in order; one that is wrapped or quantized already counts once, as the wrapper."""
    return [place for place in _walk(model, "") if place.path not in _OUTPUT_LAYERS]


def select_layers(model: nn.Module, target_modules: Sequence[str] | str) -> list[LayerPlace]:
    """The layers that `target_modules` means. Raises `UserError` for a target that no layer is called by."""
    layers = linear_layers(model)
    if target_modules == "all-linear":
        return layers
    targets = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    for target in targets:
        if not any(_is_called(place.path, target) for place in layers):
            names = sorted({place.attribute for place in layers})
            raise UserError(
                f"target module {target!r} is no linear layer of this model's blocks; choose among {', '.join(names)}, "
                'or "all-linear" for all of them'
            )
    return [place for place in layers if any(_is_called(place.path, target) for target in targets)]


def _walk(module: nn.Module, prefix: str) -> Iterator[LayerPlace]:
    """Every linear layer below `module`, without a look inside those that stand in place of one."""
    for name, child in module.named_children():
        if isinstance(child, Linear | Conv1D) or getattr(child, "replaces_linear", False):
            yield LayerPlace(prefix + name, module, name)
        else:
            yield from _walk(child, f"{prefix}{name}.")


def _is_called(path: str, target: str) -> bool:
    """Whether `target` is the whole path or the end of it, in whole names."""
    return path == target or path.endswith("." + target)
