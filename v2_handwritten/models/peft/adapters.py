"""Adapters of this level in PEFT's folders; the folders themselves are `shared_data/peft/adapter_files.py`.

Level 1: PEFT's own functions. Level 3: the same over NumPy. Theory: lora.md.

    save_adapter(model, "runs/adapter", base_name="runs/v2/tiny/pretrain")
"""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from shared_data.model_files.tensor_files import read_shapes
from shared_data.peft.adapted_model import merged_state_dict
from shared_data.peft.adapter_files import WEIGHTS, adapter_tensors, read_adapter, write_adapter
from v2_handwritten.models.checkpoint import read_tensor
from v2_handwritten.models.peft.lora import inject_lora
from v2_handwritten.models.transformer import Transformer


def save_adapter(model: nn.Module, folder: Path | str, base_name: str, name: str = "default") -> None:
    """Write one adapter of the model. `base_name` is the folder or the hub's name of the model it belongs to.

    Raises `UserError` where there is no such adapter.
    """
    tensors = {key: weight.detach().clone().cpu() for key, weight in adapter_tensors(model, name).items()}
    write_adapter(folder, save(tensors, metadata={"format": "pt"}), model, base_name, name)


def load_adapter(model: nn.Module, folder: Path | str, name: str = "default") -> list[nn.Parameter]:
    """Add a saved adapter to the model and make it the active one; its parameters are returned, and trainable.

    Raises `UserError` for an adapter of another base or kind, for damaged files, and where `inject_lora` does.
    """
    config = read_adapter(model, folder, read_shapes)
    parameters = inject_lora(model, config, seed=0, name=name)
    restore_adapter(model, folder, name)
    return parameters


@torch.no_grad()
def restore_adapter(model: nn.Module, folder: Path | str, name: str = "default") -> None:
    """Copy the weights of a saved adapter into the same adapter of the model, in place."""
    for key, weight in adapter_tensors(model, name).items():
        weight.copy_(read_tensor(Path(folder) / WEIGHTS, key))


def merged_model(model: Transformer) -> Transformer:
    """A plain model that computes what a model and its active adapter do together; all of it can be trained.

    Quantized weights are decoded.
    """
    config = replace(model.config, quantization=None)
    plain = Transformer(config, model.kernels).to(model.lm_head.weight)
    plain.load_state_dict(merged_state_dict(model))
    return plain
