"""The safetensors files of a model's folder: which ones they are, and what their headers say. A GGUF file is its own.

`safetensors` checks a header before anything of it is used: its length, each tensor's type, shape and place, and that the places neither
overlap nor leave gaps.

    uv run python -c "from pathlib import Path; from shared_data.model_files.tensor_files import *; print(read_shapes(Path('runs/v2/tiny/pretrain/model.safetensors')))"
"""

import json
from pathlib import Path, PureWindowsPath
from typing import Annotated

from pydantic import AfterValidator, Field
from safetensors import SafetensorError, safe_open

from shared_data.errors import UserError
from shared_data.files import read_json
from shared_data.foreign_json import ForeignJson
from shared_data.model_files.gguf import is_gguf
from shared_data.model_files.gguf_model import weight_shapes

# Constants among the weights: causal masks and rotary frequencies of older versions of transformers, and bitsandbytes' 0 for "in rows".
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq", ".weight_format")
_FLOAT_TYPES = ("F32", "F16", "BF16", "F64")
_CODE_TYPES = ("I8", "U8", "I32")


def _inside(name: str) -> str:
    path = PureWindowsPath(name)  # knows both kinds of separators
    if path.anchor or ".." in path.parts or "\0" in name:
        raise ValueError("it leads out of the folder")
    return name


class WeightIndex(ForeignJson):
    """`model.safetensors.index.json`: which file of the folder holds each tensor."""

    weight_map: Annotated[dict[str, Annotated[str, AfterValidator(_inside)]], Field(min_length=1)]


def tensor_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or those that an index names. A GGUF file is its own.

    A file may be a link, as those of the hub's cache are; its name leads nowhere else.
    """
    if is_gguf(folder):
        return [folder]
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        pickle = any(folder.glob("*.bin"))
        remedy = "convert its pytorch_model.bin to safetensors" if pickle else "check the path"
        raise UserError(f"{folder} has no model.safetensors; {remedy}")
    weight_map = WeightIndex.read(read_json(index), index).weight_map
    paths = [folder / name for name in sorted(set(weight_map.values()))]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is missing, but {index.name} names it; copy it too")
    return paths


def read_shapes(path: Path | str, quantized: bool = False) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a safetensors or GGUF file, from its header. Raises `UserError` if it is damaged.

    Tensors are floating point, or, of a `quantized` model, codes as well.
    """
    if is_gguf(path):
        return weight_shapes(path)
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            for name, piece in slices.items():
                types = (*_FLOAT_TYPES, *(_CODE_TYPES if quantized else ()))
                if piece.get_dtype() not in types and not name.endswith(BUFFERS):
                    raise UserError(
                        f"{path}: tensor {name} has type {piece.get_dtype()}; only {', '.join(_FLOAT_TYPES)} weights can be read"
                    )
            return {name: tuple(piece.get_shape()) for name, piece in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}); copy it again") from error


def tensor_bytes(path: Path, name: str) -> tuple[str, bytes]:
    """Type and numbers of a tensor, as they stand in the file: the length of the header, the header, the numbers."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
        start, end = entry["data_offsets"]
        file.seek(8 + size + start)
        return entry["dtype"], file.read(end - start)
