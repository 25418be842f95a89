"""Models in and out of Hugging Face folders, and out of GGUF files: the numbers of their tensors.

What we save, `AutoModelForCausalLM.from_pretrained(folder)` loads (of a reward model, `AutoModelForSequenceClassification`); what
transformers saves of our families, we load. What a folder must hold is checked first, in shared_data/model_files/folder.py. No
pickle is read or written (safetensors is a JSON header and the raw numbers).

Level 1: `save_pretrained` and `from_pretrained`. Level 3: the same functions over NumPy.

    uv run python -c "from v2_handwritten.models.checkpoint import load_model; print(load_model('runs/v2/tiny/pretrain').config)"
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from shared_data.memory import freed_memory_returned
from shared_data.model_files.folder import (
    find_tensors,
    read_config,
    read_reward_config,
    reward_model_to_hf,
    write_folder,
)
from shared_data.model_files.gguf import is_gguf
from shared_data.model_files.gguf_model import read_weight
from shared_data.model_files.initialization import parameter_shapes, reward_parameter_shapes
from shared_data.model_files.stored_names import stored_tensors
from shared_data.quantization.layers import (
    place_quantized_layers,
    plain_parameters,
    quantized_tensors,
    stored_layers,
)
from v2_handwritten.models.quantization.quantize import LAYERS
from v2_handwritten.models.reward_model import RewardModel
from v2_handwritten.models.transformer import CausalModel, Transformer
from v2_handwritten.models.weight_layout import for_decoding

M = TypeVar("M", bound=CausalModel)


def save_model(model: CausalModel, folder: Path | str, tokenizer_folder: Path | str | None = None) -> None:
    """Write a language or reward model as a Hugging Face folder, with a copy of the tokenizer's files.

    A tied output matrix is left out, as transformers does. Each file appears whole or not at all.
    """
    weights = model.state_dict()
    tensors = quantized_tensors(model) | {
        stored_name: weights[name][index]
        for name in plain_parameters(model.config, _shapes(model))
        for stored_name, index in stored_tensors(name, model.config)
    }
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    is_reward_model = isinstance(model, RewardModel)
    config = reward_model_to_hf(model.config, tokenizer_folder) if is_reward_model else model.config.to_hf()
    dtype = str(model.token_embedding.weight.dtype).removeprefix("torch.")
    weight_bytes = save(tensors, metadata={"format": "pt"})
    write_folder(Path(folder), weight_bytes, config | {"dtype": dtype}, tokenizer_folder)


def load_model(
    folder: Path | str,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    kernels: str = "fused",
) -> Transformer:
    """Read a Hugging Face folder of a model of one of our families (shared_data/model_files/families.py), or a GGUF file.

    `dtype` None keeps the checkpoint's own type; GGUF's, quantized or not, become float32.

    The model is in evaluation mode (no dropout), as from transformers; `train_step` and `model.train()` change that.
    Raises `UserError` for another architecture, a missing, superfluous or wrongly shaped tensor, or a damaged file.
    """
    with torch.device("meta"):  # shapes without memory: the weights are put in place, not copied
        model = Transformer(read_config(Path(folder)), kernels)
    return _fill(model, Path(folder), dtype, device)


def load_reward_model(
    folder: Path | str,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    kernels: str = "fused",
) -> RewardModel:
    """The same of a sequence classifier with one label. Raises `UserError` for a language model or another classifier, too."""
    with torch.device("meta"):
        model = RewardModel(read_reward_config(Path(folder)), kernels)
    return _fill(model, Path(folder), dtype, device)


def load_weights(model: CausalModel, folder: Path | str) -> None:
    """Copy the tensors of a Hugging Face folder into a model of the same shape, in place; it keeps its own types."""
    weights = model.state_dict()
    with torch.no_grad():
        for name, tensor in _tensors(model, Path(folder)):
            weights[name].copy_(tensor)


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a safetensors or GGUF file whose header was read before, in memory of torch's own.

    In a file tensors begin anywhere, in torch's memory at multiples of 64 bytes. Matrix products of one and the same matrix may round
    differently by where it begins (they do on an AMD EPYC), and a run that was killed would not end as if it never was.
    """
    if is_gguf(path):
        return torch.from_numpy(read_weight(path, name)).clone()
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name).clone()


def _fill(model: M, folder: Path, dtype: torch.dtype | None, device: str | torch.device) -> M:
    """Give a model without memory the folder's tensors as its parameters, in memory as decoding reads them.

    Quantized layers take the place of its own.
    """
    codes = stored_layers(model.config)  # their types say how to read them
    found = (
        (name, tensor.to(device, None if name in codes else dtype))
        for name, tensor in _tensors(model, folder)
    )
    plain = model.config.has_plain_blocks
    with freed_memory_returned():
        tensors = dict(for_decoding(found, model.config.head_name) if plain else found)
    if codes:
        model.to(next(tensor.dtype for name, tensor in tensors.items() if name not in codes))
        tensors = place_quantized_layers(model, tensors, LAYERS)
    # `find_tensors` has checked that only a tied matrix is missing.
    model.load_state_dict(tensors, strict=False, assign=True)
    if isinstance(model, Transformer):
        model.tie_weights()
    return model.requires_grad_().eval()


def _tensors(model: CausalModel, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and numbers of each of the model's parameters, one at a time, once all have been found in the folder."""
    shapes = _shapes(model)
    for name, pieces in find_tensors(folder, model.config, shapes).items():
        path, stored_name, index = pieces[0]
        tensor = read_tensor(path, stored_name)
        if index:  # an expert's matrix of the layer's array
            whole = tensor.new_empty(shapes[name])
            for path, stored_name, index in pieces:
                whole[index] = read_tensor(path, stored_name)
            tensor = whole
        yield name, tensor


def _shapes(model: CausalModel) -> dict[str, tuple[int, ...]]:
    """The parameters of a checkpoint of this kind of model."""
    return (reward_parameter_shapes if isinstance(model, RewardModel) else parameter_shapes)(model.config)
