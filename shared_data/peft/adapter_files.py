"""PEFT folders in and out: `adapter_config.json` and `adapter_model.safetensors`, under PEFT's names.

What we save, `PeftModel.from_pretrained(base, folder)` loads, and the other way round. Everything is checked before the
model is changed: the settings, which layers are adapted, the name and shape of every tensor. An adapter is bound to its base
by shapes alone, so a mistake that fits (another model of the same architecture) cannot be noticed.

Levels 2 and 3 read and write the tensors themselves (`models/peft/adapters.py`).

    base = base_of_adapter("runs/adapter")
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared_data.errors import UserError
from shared_data.files import atomic_write, read_json, write_json
from shared_data.model_files.gguf import is_gguf
from shared_data.model_files.hub import download_model, is_hub_name
from shared_data.peft.adapter_schema import AdapterOfBase, LoraAdapter, chosen_modules
from shared_data.peft.config import LoraConfig
from shared_data.peft.layers import AdaptedLayer, copied_weights
from shared_data.peft.target_modules import (
    LayerPlace,
    features,
    linear_layers,
    select_layers,
    select_modules,
)

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_TENSORS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
# Settings of PEFT that are computed here, and those that change no number of a trained adapter. All others must be empty.
_COMPUTED = frozenset(
    {
        "base_model_name_or_path",
        "ensure_weight_tying",
        "lora_alpha",
        "lora_dropout",
        "modules_to_save",
        "peft_type",
        "r",
    }
    | {"target_modules", "use_dora", "use_rslora"}
)
_NEUTRAL = frozenset(
    {
        "auto_mapping",
        "corda_config",
        "eva_config",
        "fan_in_fan_out",
        "inference_mode",
        "layers_pattern",
        "lora_ga_config",
    }
    | {
        "megatron_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)
# "bias": that of PEFT's default. Ways to begin that leave the base alone; the others (PiSSA, OLoRA, LoftQ, …) move a part of it.
_USUAL = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal")}


def base_of_adapter(folder: Path | str) -> Path | None:
    """The folder of the model that an adapter belongs to; None where the folder holds no adapter, or a whole model beside it.

    A base of the hub is downloaded. Raises `UserError` where the adapter names one that is nowhere.
    """
    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file() or (folder / "config.json").is_file():
        return None
    file = folder / "adapter_config.json"
    settings = read_json(file)
    kind = LoraAdapter if settings.get("peft_type") == "LORA" else AdapterOfBase  # level 1 loads others too
    base = kind.read(settings, file).base_model_name_or_path
    if base and not Path(base).exists() and is_hub_name(base):
        return download_model(base)
    if not base or not (Path(base).is_dir() or is_gguf(base)):
        raise UserError(
            f"{folder} is an adapter of {base}, and there is no such folder; correct base_model_name_or_path in its "
            "adapter_config.json"
        )
    return Path(base)


def adapter_tensors(model: Any, name: str) -> dict[str, Any]:
    """All parameters of an adapter by PEFT's names; one that two tied modules share has the names of both.

    Raises `UserError` where there is no such adapter.
    """
    tensors: dict[str, Any] = {}
    for place in _places(model, name):
        adapter = place.layer.adapters[name]
        weights = (adapter.lora_A.weight, adapter.lora_B.weight, adapter.magnitude)
        for tensor_name, weight in zip(_TENSORS, weights, strict=True):
            if weight is not None:
                tensors[f"{_PREFIX}{place.path}.{tensor_name}"] = weight
    for copies in copied_weights(model):
        if name in copies.weights:
            tensors |= {f"{_PREFIX}{path}.weight": copies.weights[name] for path in copies.users}
    return tensors


def write_adapter(folder: Path | str, weights: bytes, model: Any, base_name: str, name: str) -> None:
    """Write an adapter's `weights`, a safetensors file, and its configuration. Each file appears whole or not at all."""
    folder = Path(folder)
    with atomic_write(folder / WEIGHTS) as file:
        file.write(weights)
    write_json(folder / "adapter_config.json", _settings(model, base_name, name))


def read_adapter(
    model: Any, folder: Path | str, read_shapes: Callable[[Path], dict[str, tuple[int, ...]]]
) -> LoraConfig:
    """The configuration of an adapter whose every tensor fits the model; its targets are the paths of layers.

    Raises `UserError` for an adapter of another base or kind and for damaged files.
    """
    folder = Path(folder)
    settings = _read_settings(folder / "adapter_config.json")
    file = folder / WEIGHTS
    if not file.is_file():
        pickle = (folder / "adapter_model.bin").is_file()
        remedy = "convert its adapter_model.bin to safetensors" if pickle else "check the path"
        raise UserError(f"{folder} has no {WEIGHTS}; {remedy}")
    shapes = read_shapes(file)
    layers = {place.path: place for place in linear_layers(model)}
    paths = chosen_modules(settings.target_modules, layers, folder / "adapter_config.json")
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout or 0.0,
        target_modules=tuple(paths),
        use_rslora=bool(settings.use_rslora),
        use_dora=bool(settings.use_dora),
        modules_to_save=tuple(settings.modules_to_save or ()),
    )
    whole = select_modules(model, config.modules_to_save)
    if any(len(users) > 1 for users in whole) and not settings.ensure_weight_tying:
        raise UserError(
            f"{folder} unties the output matrix from the embedding, which this model cannot; train it with ensure_weight_tying"
        )
    modules = {path: module for users in whole for path, module in users.items()}
    _check_tensors(shapes, [layers[path] for path in paths], modules, config, file)
    return config


def _places(model: Any, name: str) -> list[LayerPlace]:
    """The layers that carry the adapter."""
    places = [
        place
        for place in linear_layers(model)
        if isinstance(place.layer, AdaptedLayer) and name in place.layer.adapter_names
    ]
    if not places:
        raise UserError(f"the model has no adapter {name!r} to save; name one that it has")
    return places


def _settings(model: Any, base_name: str, name: str) -> dict[str, Any]:
    """What stands in `adapter_config.json`; settings of PEFT that are left out take its defaults."""
    places = _places(model, name)
    config = places[0].layer.adapters[name].config
    whole = [list(copies.users) for copies in copied_weights(model) if name in copies.weights]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": _target_names(model, places),
        # Tied modules by both names: PEFT 0.21.2 sees that GPT-2's "wte" is tied only where "lm_head" is named too.
        "modules_to_save": [path.rpartition(".")[2] for paths in whole for path in paths] or None,
        "ensure_weight_tying": any(len(paths) > 1 for paths in whole),
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "fan_in_fan_out": any(place.layer.from_conv1d for place in places),
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _read_settings(file: Path) -> LoraAdapter:
    """PEFT's settings; those that are not computed here must not be in use."""
    settings = read_json(file)
    if settings.get("peft_type") != "LORA":
        raise UserError(f"{file} is not the configuration of a LoRA adapter; choose a folder that PEFT wrote")
    for key, value in settings.items():
        is_used = value not in (None, False, 0, "", [], {}) and value not in _USUAL.get(key, ())
        if is_used and key not in _COMPUTED | _NEUTRAL:
            raise UserError(f"{file}: {key} is {value!r:.60}, which cannot be loaded; train without it")
    return LoraAdapter.read(settings, file)


def _check_tensors(
    shapes: dict[str, tuple[int, ...]],
    places: list[LayerPlace],
    modules: dict[str, Any],
    config: LoraConfig,
    file: Path,
) -> None:
    """Every adapted layer and every whole module must have its tensors, in its shape, and there must be no others."""
    expected: dict[str, tuple[int, ...]] = {}
    for place in places:
        O, I = features(place.layer)  # noqa: E741 - out and in
        wanted: list[tuple[int, ...]] = [(config.r, I), (O, config.r), (O,)]
        for tensor_name, shape in zip(_TENSORS, wanted[: 3 if config.use_dora else 2], strict=False):
            expected[f"{_PREFIX}{place.path}.{tensor_name}"] = shape
    advice = "load the adapter on the model that it was trained on"
    if not expected:
        raise UserError(f"{file}: none of its target modules is in this model; {advice}")
    expected |= {f"{_PREFIX}{path}.weight": tuple(module.weight.shape) for path, module in modules.items()}
    for name, shape in shapes.items():
        if name not in expected:
            raise UserError(f"{file}: tensor {name} belongs to no layer of this model; {advice}")
        if shape != expected[name]:
            raise UserError(
                f"{file}: tensor {name} has shape {list(shape)}, this model needs {list(expected[name])}; {advice}"
            )
    missing = sorted(expected.keys() - shapes.keys())
    if missing:
        raise UserError(f"{file} has no tensor {missing[0]}, which this model needs; {advice}")


def _target_names(model: Any, places: list[LayerPlace]) -> list[str]:
    """The adapted layers as PEFT's `target_modules`: by their last names, if these mean no others, else by their paths."""
    names = sorted({place.attribute for place in places})
    paths = [place.path for place in places]
    return names if [place.path for place in select_layers(model, names)] == paths else paths
