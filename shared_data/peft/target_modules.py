"""Which modules an adapter or a quantizer takes the place of, and which ones an adapter may bring along whole: PEFT's rules.

A target is the last part of a layer's path, or several: "q_proj", "mlp.c_proj" (PEFT's `target_modules`). "all-linear" is every
linear layer but the output matrix (`lm_head`, `score`), which the loss reads directly. Whole modules (`modules_to_save`) are the
token embedding and the output matrix. Models are those of either hand-written level.

    uv run python -c "from v2_handwritten.models.transformer import *; from shared_data.peft.target_modules import *; print([p.path for p in select_layers(Transformer(ModelConfig()), ['q_proj'])])"
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from shared_data.errors import UserError
from shared_data.peft.layers import AdaptedLayer, ReplacesLinear

_LINEAR_CLASSES = ("Linear", "Conv1D")  # the names of both levels
_OUTPUT_LAYERS = ("lm_head", "score")
_NAMES_OF_EXPERTS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LayerPlace:
    """Where a linear layer stands in the tree of modules: `parent.attribute`, by its full name `path`."""

    path: str
    parent: Any
    attribute: str

    @property
    def layer(self) -> Any:
        """What is there now."""
        return getattr(self.parent, self.attribute)

    def replace(self, layer: Any) -> None:
        """Put another layer there."""
        setattr(self.parent, self.attribute, layer)


def linear_layers(model: Any) -> list[LayerPlace]:
    """The linear layers of the blocks, in order; one that is wrapped or quantized already counts once, as the wrapper."""
    return [place for place in _walk(model, "") if place.path not in _OUTPUT_LAYERS]


def select_layers(model: Any, target_modules: Sequence[str] | str) -> list[LayerPlace]:
    """The layers that `target_modules` means. Raises `UserError` for a target that is the name of no layer."""
    layers = linear_layers(model)
    # PEFT takes these names for the experts' matrices, which are no layers.
    if getattr(getattr(model, "config", None), "num_local_experts", 0):
        layers = [place for place in layers if place.attribute not in _NAMES_OF_EXPERTS]
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


def select_plain_layers(model: Any, target_modules: Sequence[str] | str) -> list[LayerPlace]:
    """The same, to be quantized; raises `UserError` for a layer that is quantized or adapted already."""
    places = select_layers(model, target_modules)
    for place in places:
        if isinstance(place.layer, ReplacesLinear):
            raise UserError(
                f"{place.path} is quantized or carries adapters already; quantize the plain model first"
            )
    return places


def select_modules(model: Any, names: Sequence[str]) -> list[dict[str, Any]]:
    """The modules that `modules_to_save` means, by their paths: each alone, or both where either is named and they are tied.

    Raises `UserError` for any other name.
    """
    if not names:
        return []
    embedding = "transformer.wte" if model.config.model_type == "gpt2" else "model.embed_tokens"
    modules = {embedding: model.token_embedding, "lm_head": model.lm_head}
    for name in names:
        if not any(_is_called(path, name) for path in modules):
            choices = ", ".join(path.rpartition(".")[2] for path in modules)
            raise UserError(f"modules_to_save: an adapter cannot bring {name!r}; choose among {choices}")
    if model.config.tie_word_embeddings:
        return [modules]
    chosen = [path for path in modules if any(_is_called(path, name) for name in names)]
    return [{path: modules[path]} for path in chosen]


def features(layer: Any) -> tuple[int, int]:
    """How many features a linear layer writes and reads, (out, in), whatever the layout of its weight."""
    base = layer.base if isinstance(layer, AdaptedLayer) else layer
    rows, columns = base.weight.shape
    return (columns, rows) if type(base).__name__ == "Conv1D" else (rows, columns)


def _walk(module: Any, prefix: str) -> Iterator[LayerPlace]:
    """Every linear layer below `module`, without a look inside those that stand in place of one."""
    for name, child in module.named_children():
        if isinstance(child, ReplacesLinear) or type(child).__name__ in _LINEAR_CLASSES:
            yield LayerPlace(prefix + name, module, name)
        else:
            yield from _walk(child, f"{prefix}{name}.")


def _is_called(path: str, target: str) -> bool:
    """Whether `target` is the whole path or the end of it, in whole names."""
    return path == target or path.endswith("." + target)
