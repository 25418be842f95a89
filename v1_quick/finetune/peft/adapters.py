"""PEFT folders in and out: `get_peft_model_state_dict`, `set_peft_model_state_dict`, and `LoraConfig.save_pretrained`.

PEFT's `PeftModel.save_pretrained` and `from_pretrained` do the same in one call each; they put an adapter that is not called
"default" into a folder of its own, and go on with a warning where tensors are missing.

    save_adapter(model, "runs/adapter", base_name="runs/v1/tiny/pretrain")
"""

import copy
from pathlib import Path
from typing import Any

import peft
from safetensors import SafetensorError
from safetensors.torch import save
from torch import nn

from shared_data.errors import UserError
from shared_data.files import atomic_write, read_json
from v1_quick.finetune.peft.lora import _name_tied_modules, lora_parameters, set_adapter
from v1_quick.models.transformer import Transformer


def save_adapter(model: Transformer, folder: Path | str, base_name: str, name: str = "default") -> None:
    """Write one adapter of the model. `base_name` is the folder or the hub's name of the model it belongs to."""
    library: Any = model.library
    if name not in getattr(library, "peft_config", {}):
        raise UserError(f"the model has no adapter {name!r} to save; name one that it has")
    tensors = peft.get_peft_model_state_dict(library, adapter_name=name)
    with atomic_write(Path(folder) / "adapter_model.safetensors") as file:
        file.write(save({key: tensor.clone().contiguous().cpu() for key, tensor in tensors.items()}))
    settings = copy.deepcopy(library.peft_config[name])
    _name_tied_modules(settings)
    settings.base_model_name_or_path, settings.inference_mode = base_name, True
    settings.save_pretrained(str(folder))


def load_adapter(model: Transformer, folder: Path | str, name: str = "default") -> list[nn.Parameter]:
    """Hang a saved adapter on the model and make it the active one; its parameters are returned, and trainable."""
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (Path(folder) / file).is_file():
            raise UserError(f"{folder} has no {file}; check the path")
    try:
        settings: Any = peft.PeftConfig.from_pretrained(str(folder))
        tensors = peft.load_peft_weights(str(folder), device="cpu")
        settings.inference_mode = False
        _name_tied_modules(settings)
        if isinstance(model.library, peft.PeftModel):
            model.library.add_adapter(name, settings)
        else:
            model.library = peft.get_peft_model(model.library, settings, adapter_name=name)
        result: Any = peft.set_peft_model_state_dict(model.library, tensors, adapter_name=name)
    except (ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{folder} cannot be loaded ({reason}); load the adapter on the model that it was trained on"
        ) from error
    unfit = [key for key in result.missing_keys if "lora_" in key and f".{name}." in key]
    unfit += result.unexpected_keys
    if unfit:
        raise UserError(
            f"{folder} does not fit this model at {unfit[0]}; load the adapter on the model that it was trained on"
        )
    model.train(model.training)  # PEFT's new modules are in training mode, whatever the model's
    set_adapter(model, name)
    return lora_parameters(model)


def base_of_adapter(folder: Path | str) -> Path | None:
    """The folder of the model that an adapter belongs to; None where the folder holds no adapter, or a whole model beside it.

    Raises `UserError` where the adapter names a base that is not on this disk.
    """
    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file() or (folder / "config.json").is_file():
        return None
    base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not base or not Path(base).is_dir():
        raise UserError(
            f"{folder} is an adapter of {base}, and there is no such folder; correct base_model_name_or_path in its "
            "adapter_config.json"
        )
    return Path(base)
