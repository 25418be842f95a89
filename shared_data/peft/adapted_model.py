"""Adapters on a model: add one, choose the active one, merge it into plain weights and take it out again.

Nothing is computed here but the initial weights. The layers with adapters are a level's own (`models/peft/lora.py`), and so is
the type of everything that is returned: parameters and arrays of that level.

    parameters = inject_lora(model, LoraConfig(), seed=0); set_adapter(model, None); merge_lora(model)
"""

import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from shared_data.errors import UserError
from shared_data.peft.config import LoraConfig
from shared_data.peft.layers import AdaptedLayer, ReplacesLinear, adapted_layers, copied_weights
from shared_data.peft.target_modules import features, linear_layers, select_layers, select_modules


def add_adapter(
    model: Any,
    config: LoraConfig,
    seed: int,
    name: str,
    adapted_layer: Callable[[Any, Any], Any],
    copied_weight: Callable[[dict[str, Any]], Any],
) -> list[Any]:
    """Add an adapter to the model, make it the active one, and return its parameters: the only ones that train.

    `adapted_layer` wraps a layer of a model, `copied_weight` modules that share a weight. Raises `UserError` for a target module
    the model does not have, for a module that cannot be saved with an adapter, for a name that is taken, and while adapters are merged.
    """
    places = select_layers(model, config.target_modules)
    whole = select_modules(model, config.modules_to_save)
    _check_name(model, name)
    for place in places:
        if not isinstance(place.layer, AdaptedLayer):
            place.replace(adapted_layer(place.layer, model))
        in_features = features(place.layer)[1]
        place.layer.add_adapter(
            name, config, initial_down_projection(place.path, config.r, in_features, seed)
        )
    for users in whole:
        first = next(iter(users.values()))
        if not hasattr(first, "copies"):
            first.copies = copied_weight(users)
        first.copies.add_adapter(name)
    set_adapter(model, name)
    return lora_parameters(model)


def initial_down_projection(path: str, r: int, in_features: int, seed: int) -> Float[np.ndarray, "r I"]:
    """Uniform in ±1/√in_features, which is Kaiming's bound for a = √5, as PEFT draws it.

    Each layer has a random stream of its own, by (seed, path), as the initial weights of a model.
    """
    bound = 1 / math.sqrt(in_features)
    generator = np.random.default_rng([seed, zlib.crc32(path.encode())])
    return generator.uniform(-bound, bound, (r, in_features)).astype(np.float32)


def set_adapter(model: Any, name: str | None) -> None:
    """Make one adapter the active one, and the only thing that trains; None: the base alone, as a reference model is.

    Raises `UserError` if there is no such adapter, and while adapters are merged.
    """
    layers = list(adapted_layers(model))
    _check_unmerged(layers)
    known = sorted({known for layer in layers for known in layer.adapter_names})
    if name is not None and name not in known:
        raise UserError(f"the model has no adapter {name!r}; it has {', '.join(known) or 'none'}")
    for copies in copied_weights(model):
        copies.activate(name)
    for parameter in model.parameters():
        parameter.requires_grad = False
    for layer in layers:
        layer.active = name if name in layer.adapter_names else None
    for parameter in lora_parameters(model):
        parameter.requires_grad = True


def lora_parameters(model: Any) -> list[Any]:
    """The parameters of the active adapter: its updates, layer by layer, then its whole modules."""
    active = (layer.active_adapter for layer in adapted_layers(model))
    updates = [parameter for adapter in active if adapter is not None for parameter in adapter.parameters()]
    return updates + [copies.weights[copies.active] for copies in copied_weights(model) if copies.active]


def merge_lora(model: Any) -> None:
    """Fold the active adapter into plain weights, which cost no more than the base's. Merging again changes nothing.

    Whole modules of the adapter are plain weights already.
    """
    for layer in adapted_layers(model):
        layer.merge()


def unmerge_lora(model: Any) -> None:
    """Back to base and adapter; the base's bits are those it always had."""
    for layer in adapted_layers(model):
        layer.unmerge()


def merged_state_dict(model: Any) -> dict[str, Any]:
    """The weights of a plain model that computes the same, by a checkpoint's names: adapters folded in, codes decoded."""
    state = {key: value for key, value in model.state_dict().items() if ".copies." not in key}
    for place in linear_layers(model):
        layer, prefix = place.layer, f"{place.path}."
        replaced, adapted = isinstance(layer, ReplacesLinear), isinstance(layer, AdaptedLayer)
        if replaced:
            weight = layer.adapted_weight() if adapted else layer.weight.data
            bias = state.get(f"{prefix}base.bias" if adapted else f"{prefix}bias")
            state = {key: value for key, value in state.items() if not key.startswith(prefix)}
            state[f"{prefix}weight"] = weight.T if layer.from_conv1d else weight
            if bias is not None:
                state[f"{prefix}bias"] = bias
    return state


def _check_name(model: Any, name: str) -> None:
    """An adapter's name becomes part of the names of its parameters, beside those of a module and of a dictionary."""
    layers = list(adapted_layers(model))
    _check_unmerged(layers)
    if any(name in layer.adapter_names for layer in layers):
        raise UserError(f"the model has an adapter {name!r} already; choose another name")
    if not name or "." in name or hasattr(model, name) or hasattr(dict, name):
        raise UserError(f"{name!r} cannot be the name of an adapter; choose a word without dots")


def _check_unmerged(layers: list[AdaptedLayer]) -> None:
    """What is merged would go on computing with the adapter that was active then."""
    if any(layer.merged is not None for layer in layers):
        raise UserError("an adapter is merged into the weights; call unmerge_lora(model) first")
