"""Models in and out of Hugging Face folders, and out of GGUF files: the numbers of their tensors.

What we save, `AutoModelForCausalLM.from_pretrained(folder)` loads (of a reward model, `AutoModelForSequenceClassification`); what
transformers saves of GPT-2 and Llama, we load. What a folder must hold is checked first, in shared_data/model_files/folder.py. No
pickle is read or written: a safetensors file is a JSON header and the raw numbers, which `read_tensor` reads by hand.

Level 1: `save_pretrained` and `from_pretrained`. Level 2: the same functions over torch.

    uv run python -c "from v3_numpy_deep.models.checkpoint import load_model; print(load_model('runs/v3/tiny/pretrain').config)"
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Shaped
from safetensors.numpy import save

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
from v3_numpy_deep.autograd import Array
from v3_numpy_deep.models.quantization.quantize import LAYERS
from v3_numpy_deep.models.reward_model import RewardModel
from v3_numpy_deep.models.transformer import CausalModel, Transformer
from v3_numpy_deep.models.weight_layout import for_decoding

M = TypeVar("M", bound=CausalModel)
# How NumPy reads each type. It has no bfloat16, which is the upper half of a float32.
_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8", "I32": "<i4", "I8": "<i1", "U8": "<u1"}


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
    # `ascontiguousarray` would give a number an axis.
    tensors = {name: tensor.copy("C") for name, tensor in tensors.items()}
    is_reward_model = isinstance(model, RewardModel)
    config = reward_model_to_hf(model.config, tokenizer_folder) if is_reward_model else model.config.to_hf()
    config |= {"dtype": str(model.token_embedding.weight.dtype)}
    write_folder(Path(folder), save(tensors, metadata={"format": "pt"}), config, tokenizer_folder)


def load_model(
    folder: Path | str, dtype: type | None = None, device: str = "cpu", kernels: str = "fused"
) -> Transformer:
    """Read a Hugging Face folder of a model of one of our families (shared_data/model_files/families.py), or a GGUF file.

    `dtype` None keeps float32 and float64, and widens the rest; quantized numbers become float32.

    Raises `UserError` for another architecture, a missing, superfluous or wrongly shaped tensor, or a damaged file.
    """
    return _fill(Transformer(read_config(Path(folder)), kernels), Path(folder), dtype, device)


def load_reward_model(
    folder: Path | str, dtype: type | None = None, device: str = "cpu", kernels: str = "fused"
) -> RewardModel:
    """The same of a sequence classifier with one label. Raises `UserError` for a language model or another classifier, too."""
    return _fill(RewardModel(read_reward_config(Path(folder)), kernels), Path(folder), dtype, device)


def load_weights(model: CausalModel, folder: Path | str) -> None:
    """Copy the tensors of a Hugging Face folder into a model of the same shape, in place; it keeps its own types."""
    parameters = dict(model.named_parameters())
    for name, tensor in _tensors(model, Path(folder)):
        parameters[name].data[...] = tensor


def read_tensor(path: Path, name: str) -> Shaped[Array, "..."]:
    """One tensor of a safetensors or GGUF file whose header was read (and found sound) before.

    A safetensors file is the length of its header (8 bytes), the header (JSON: type, shape and place of each tensor), and the numbers.
    """
    if is_gguf(path):
        return read_weight(path, name)
    with open(path, "rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        entry: dict[str, Any] = json.loads(file.read(header_size))[name]
        file.seek(8 + header_size + entry["data_offsets"][0])
        size = int(np.prod(entry["shape"], dtype=np.int64))
        numbers = np.fromfile(file, _TYPES[entry["dtype"]], size).reshape(entry["shape"])
    if entry["dtype"] == "BF16":
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(np.float32) if entry["dtype"] == "F16" else numbers


def _fill(model: M, folder: Path, dtype: type | None, device: str) -> M:
    """Give a model the folder's tensors as its parameters, in memory as decoding reads them; the folder's types are the model's.

    Quantized layers take the place of its own.
    """
    assert device == "cpu", "NumPy computes on the CPU"
    codes = stored_layers(model.config)  # their types say how to read them
    found: Iterator[tuple[str, Array]] = (
        (name, tensor if dtype is None or name in codes else tensor.astype(dtype, copy=False))
        for name, tensor in _tensors(model, folder)
    )
    if model.config.has_plain_blocks:
        found = for_decoding(found, model.config.head_name)
    with freed_memory_returned():
        plain = place_quantized_layers(model, dict(found), LAYERS).items() if codes else found
        parameters = dict(model.named_parameters())
        for name, tensor in plain:
            parameters[name].data = tensor
    return model.eval()


def _tensors(model: CausalModel, folder: Path) -> Iterator[tuple[str, Array]]:
    """Name and numbers of each of the model's parameters, one at a time, once all have been found in the folder."""
    shapes = _shapes(model)
    for name, pieces in find_tensors(folder, model.config, shapes).items():
        path, stored_name, index = pieces[0]
        array = read_tensor(path, stored_name)
        if index:  # an expert's matrix of the layer's array
            whole = np.empty(shapes[name], array.dtype)
            for piece in pieces:
                whole[piece.part] = read_tensor(piece.path, piece.name)
            array = whole
        yield name, array


def _shapes(model: CausalModel) -> dict[str, tuple[int, ...]]:
    """The parameters of a checkpoint of this kind of model."""
    return (reward_parameter_shapes if isinstance(model, RewardModel) else parameter_shapes)(model.config)
