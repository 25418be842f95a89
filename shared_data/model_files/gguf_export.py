"""Export: a model of ours, or of any Hugging Face folder, as one GGUF file for llama.cpp and the programs built on it.

Names, the order of rows and the types are those of llama.cpp's own conversion: matrices and embeddings get the chosen type, what has one axis
(norms, biases) stays float32, and a matrix whose rows end inside a block of Q8_0 becomes float16.

    uv run v2 export --model sft --type q8_0 --out sft.gguf
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.folder import Piece, find_tensors, read_config
from shared_data.model_files.gguf import NewTensor, is_gguf, write_gguf
from shared_data.model_files.gguf_blocks import BLOCK_TYPES, dequantize
from shared_data.model_files.gguf_model import FIELDS, LLAMA3, llama3_factors, read_weight
from shared_data.model_files.gguf_names import ROPE_FACTORS, gguf_name, is_transposed, to_gguf
from shared_data.model_files.gguf_tokenizer import tokenizer_to_gguf
from shared_data.model_files.initialization import parameter_shapes
from shared_data.model_files.tensor_files import tensor_bytes
from shared_data.peft.adapter_files import base_of_adapter
from shared_data.tokenizer.tokenizer_file import read_tokenizer

# The families that llama.cpp computes as we do, by their name there.
ARCHITECTURE_OF = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2"}
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7}  # general.file_type: what most tensors are


def export_gguf(
    folder: Path, tokenizer_folder: Path, file: Path, type_name: str, force: bool = False
) -> None:
    """Write the model of a folder and its tokenizer; `type_name` is f32, f16 or q8_0.

    Raises `UserError` for an adapter, a family, a choice or a tokenizer that llama.cpp does not have, and for a file that is there already.
    """
    block_type = type_name.upper()
    if block_type not in FILE_TYPES:
        raise UserError(f"--type {type_name!r} is not supported; choose f32, f16 or q8_0")
    if file.suffix != ".gguf":
        raise UserError(
            f"{file} is no name of a GGUF file; let --out end in .gguf, and name a run's model by its folder: --model RUN/sft"
        )
    if file.exists() and not force:
        raise UserError(f"{file} exists; choose another name, or replace it with --force")
    if base_of_adapter(folder):
        raise UserError(
            f"{folder} is an adapter, and a GGUF file holds a whole model; export a merged model, as `sft` writes it beside its adapter"
        )
    config = read_config(folder)
    if config.quantization is not None:
        raise UserError(
            f"{folder} is quantized already ({config.quantization.name}); export the model that it was made from"
        )
    metadata = _model_metadata(config, folder.stem, block_type) | _tokenizer_metadata(
        config, tokenizer_folder
    )
    write_gguf(file, metadata, dict(_tensors(folder, config, block_type)))


def _check(config: ModelConfig) -> None:
    """Refuse what llama.cpp would compute in another way."""
    if config.model_type not in ARCHITECTURE_OF:
        raise UserError(
            f"{config.model_type} is not exported; the families that are: {', '.join(ARCHITECTURE_OF)}"
        )
    if set(config.layer_types) != {"full_attention"}:
        raise UserError(
            f"a {config.model_type} with a sliding window is not exported; set sliding_window to none"
        )
    if config.model_type == "qwen3" and config.attention_bias:
        raise UserError("llama.cpp has no qwen3 with attention_bias; export a model without it")
    if config.hidden_act not in ("silu", "gelu_new"):
        raise UserError(
            f"llama.cpp has no {config.model_type} with {config.hidden_act}; export another model"
        )
    scaling = {name: value for name, value in (config.rope_scaling or {}).items() if value is not None}
    kind = scaling.get("rope_type")
    written = {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow"}
    usual = {"rope_type": kind, "finetuned": scaling.get("finetuned"), "truncate": True}
    if kind == "llama3":
        usual |= {name: value for name, value in LLAMA3.items() if name not in written}
    for name, value in scaling.items():
        if kind == "dynamic" or (name not in written and value != usual.get(name)):
            raise UserError(
                f"rope scaling {kind} with {name} = {value!r:.60} is not exported; export another model"
            )


def _model_metadata(config: ModelConfig, name: str, block_type: str) -> dict[str, Any]:
    """The entries about the model."""
    _check(config)
    architecture = ARCHITECTURE_OF[config.model_type]
    metadata: dict[str, Any] = {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": name,
        "general.file_type": FILE_TYPES[block_type],
        "general.quantization_version": 2,
    }
    fields = config.family.names
    entries = {key: getattr(config, field) for key, field in FIELDS.items() if field in fields}
    entries["vocab_size"] = config.vocab_size
    if config.model_type != "gpt2":
        entries |= {"rope.freq_base": float(config.rope_theta), "rope.dimension_count": config.head_dim}
        entries["attention.value_length"] = config.head_dim
        entries |= _rope_entries(config.rope_scaling or {})
    return metadata | {f"{architecture}.{key}": value for key, value in entries.items()}


def _rope_entries(scaling: dict[str, Any]) -> dict[str, Any]:
    """Rope scaling; of llama3 the length only, since its factors are a tensor."""
    names = {
        "rope_type": "type",
        "factor": "factor",
        "original_max_position_embeddings": "original_context_length",
        "beta_fast": "yarn_beta_fast",
        "beta_slow": "yarn_beta_slow",
    }
    if scaling.get("rope_type") == "llama3":
        names = {"original_max_position_embeddings": "original_context_length"}
    entries = {theirs: scaling[ours] for ours, theirs in names.items() if scaling.get(ours) is not None}
    return {
        f"rope.scaling.{name}": float(value) if name not in ("type", "original_context_length") else value
        for name, value in entries.items()
    }


def _tokenizer_metadata(config: ModelConfig, tokenizer_folder: Path) -> dict[str, Any]:
    """The entries about the tokenizer, with the ids that begin and end a text as the model's configuration has them."""
    entries = tokenizer_to_gguf(*read_tokenizer(tokenizer_folder), config.vocab_size)
    size = len(entries["tokenizer.ggml.tokens"])
    if size > config.vocab_size:
        raise UserError(
            f"the tokenizer {tokenizer_folder} has {size} ids, the model {config.vocab_size} embeddings; use the tokenizer that the "
            "model was trained with"
        )
    ends = config.eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if len(ends) > 3:
        raise UserError(
            f"the model names {len(ends)} end tokens, and a GGUF file has three; shorten eos_token_id"
        )
    ids = dict(zip(("eos", "eot", "eom"), ends, strict=False))
    if config.bos_token_id is not None and not entries["tokenizer.ggml.add_bos_token"]:
        ids["bos"] = config.bos_token_id
    return entries | {f"tokenizer.ggml.{name}_token_id": id for name, id in ids.items() if id >= 0}


def _tensors(folder: Path, config: ModelConfig, block_type: str) -> Iterator[tuple[str, NewTensor]]:
    """Each tensor of the file."""
    architecture, shapes = ARCHITECTURE_OF[config.model_type], parameter_shapes(config)
    scaling = config.rope_scaling or {}
    if scaling.get("rope_type") == "llama3":
        factors = llama3_factors(scaling, config.rope_theta, config.head_dim)
        yield ROPE_FACTORS, NewTensor("F32", factors.shape, lambda: factors)
    for name, pieces in find_tensors(folder, config, shapes).items():
        shape = shapes[name][::-1] if is_transposed(architecture, name) else shapes[name]
        kind = block_type
        if len(shape) == 1:
            kind = "F32"
        elif shape[-1] % BLOCK_TYPES[kind].weights:
            kind = "F16"
        numbers = partial(_numbers, pieces[0], architecture, name, shapes[name], config)
        yield gguf_name(architecture, name), NewTensor(kind, shape, numbers)


def _numbers(
    piece: Piece, architecture: str, name: str, shape: tuple[int, ...], config: ModelConfig
) -> Float32[np.ndarray, "..."]:
    """A parameter in llama.cpp's order, from a folder or from another GGUF file."""
    if is_gguf(piece.path):
        weight = read_weight(piece.path, piece.name)
    else:
        dtype, content = tensor_bytes(piece.path, piece.name)
        if dtype == "F64":
            weight = np.frombuffer(content, "<f8").astype(np.float32).reshape(shape)
        else:
            weight = dequantize(np.frombuffer(content, np.uint8), dtype).reshape(shape)
    return to_gguf(architecture, name, weight, config.num_attention_heads, config.num_key_value_heads)
