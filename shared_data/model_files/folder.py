"""A model's Hugging Face folder: `config.json`, `model.safetensors` (or shards with an index), the tokenizer's files.

Everything is checked before a model is built: the architecture, the name and the shape of every tensor. Nothing here holds the
numbers of a tensor; levels 2 and 3 read and write those (models/checkpoint.py). Where a folder is read, a GGUF file may stand in its place
(gguf_model.py). Level 1: `save_pretrained`, `from_pretrained`.

    uv run python -c "from shared_data.model_files.folder import *; print(read_config('runs/v2/tiny/pretrain'))"
"""

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from shared_data.errors import UserError
from shared_data.files import atomic_write, read_json, write_json
from shared_data.foreign_json import ForeignJson
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.generation_schema import GenerationConfig
from shared_data.model_files.gguf import is_gguf, read_gguf
from shared_data.model_files.gguf_model import config_json
from shared_data.model_files.size import check_memory
from shared_data.model_files.stored_names import Index, part_shape, stored_tensors
from shared_data.model_files.tensor_files import BUFFERS, read_shapes, tensor_bytes, tensor_files
from shared_data.quantization.layers import plain_parameters, stored_layers
from shared_data.quantization.stored_values import SCALES, TABLES, check_values
from shared_data.tokenizer.tokenizer_config import read_config as read_tokenizer_config
from shared_data.tokenizer.tokenizer_config import special_tokens
from shared_data.tokenizer.tokenizer_file import read_tokenizer, tokenizer_beside, write_tokenizer

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)


class Piece(NamedTuple):
    """A tensor of a file, and which part of a parameter it is; () is all of it."""

    path: Path
    name: str
    part: Index


def write_folder(
    folder: Path,
    weights: bytes,
    config: dict[str, Any],
    tokenizer_folder: Path | str | None = None,
) -> None:
    """Write the bytes of `model.safetensors`, then `config.json`, then copies of the tokenizer's files.

    Each file appears whole or not at all. Of a language model, generation_config.json says which token ends a text.
    """
    with atomic_write(folder / "model.safetensors") as file:
        file.write(weights)
    write_json(folder / "config.json", config)
    if "ForSequenceClassification" not in config["architectures"][0]:
        tokens = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
        write_json(
            folder / "generation_config.json", {name: id for name, id in tokens.items() if id is not None}
        )
    if tokenizer_folder is not None:
        copy_tokenizer(tokenizer_folder, folder)


def copy_tokenizer(source: Path | str, folder: Path) -> None:
    """Copies of the tokenizer's files of a folder, or those of a GGUF file's tokenizer."""
    if is_gguf(source):
        write_tokenizer(folder, *read_tokenizer(source))
        return
    for file in filter(Path.is_file, chain.from_iterable(map(Path(source).glob, _TOKENIZER_FILES))):
        with atomic_write(folder / file.relative_to(source)) as copy:
            copy.write(file.read_bytes())


def reward_model_to_hf(config: ModelConfig, tokenizer_folder: Path | str | None) -> dict[str, Any]:
    """The `config.json` of a reward model: a sequence classifier of one label, which is regression.

    The library finds the last token of a row by comparing ids with `pad_token_id`, so that is written too, as the tokenizer names it.
    """
    return config.to_hf() | {
        "architectures": [config.family.classifier],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "pad_token_id": None if tokenizer_folder is None else _pad_token_id(Path(tokenizer_folder)),
    }


def _pad_token_id(tokenizer_folder: Path) -> int | None:
    """The id of the token that the tokenizer's files name for padding; None where they name none."""
    if is_gguf(tokenizer_folder):
        definition, config = read_tokenizer(tokenizer_folder)
        ids = {token["content"]: token["id"] for token in definition["added_tokens"]}
        return ids.get(config.get("pad_token"))
    named, _ = special_tokens(read_tokenizer_config(tokenizer_folder), None, tokenizer_folder)
    tokens = tokenizer_folder / "tokenizer.json"
    if "pad_token" not in named or tokenizer_beside(tokenizer_folder, tokens) == tokens:
        return None
    definition = read_json(tokens) if tokens.is_file() else read_tokenizer(tokenizer_folder)[0]
    added = {token["content"]: token["id"] for token in definition.get("added_tokens", [])}
    return added.get(named["pad_token"].content)


def read_config(folder: Path | str) -> ModelConfig:
    """The architecture that a folder's `config.json` describes; `UserError` where it is not one of ours.

    Where `generation_config.json` names the tokens that begin and end a text, those are the model's, as in the library.
    """
    folder = Path(folder)
    if is_gguf(folder):
        config = ModelConfig.from_hf(config_json(read_gguf(folder)), folder)
        check_memory(config, folder)
        return config
    file, generation = folder / "config.json", folder / "generation_config.json"
    config = ModelConfig.from_hf(read_json(file), file)
    check_memory(config, file)
    if generation.is_file():
        named = GenerationConfig.read(read_json(generation), generation).ids()
        config = replace(config, **named)
    if config.tie_word_embeddings and not _output_is_embedding(folder, config.quantization is not None):
        return replace(config, tie_word_embeddings=False)  # as transformers does: the weights decide
    return config


def _output_is_embedding(folder: Path, quantized: bool) -> bool:
    """Whether the checkpoint has one matrix for both, or the same numbers twice."""
    places = {name: path for path in tensor_files(folder) for name in read_shapes(path, quantized)}
    embeddings = [name for name in places if name.endswith(("embed_tokens.weight", "wte.weight"))]
    if "lm_head.weight" not in places or not embeddings:
        return True
    return tensor_bytes(places["lm_head.weight"], "lm_head.weight") == tensor_bytes(
        places[embeddings[0]], embeddings[0]
    )


class _Classifier(ForeignJson):
    id2label: dict[str, Any] | None = None


def read_reward_config(folder: Path) -> ModelConfig:
    """The same of a reward model's folder; `UserError` for a language model and a classifier with more labels than one."""
    if is_gguf(folder):
        raise UserError(
            f"{folder} is a GGUF file, which holds a language model; train a reward model with `reward`"
        )
    file = folder / "config.json"
    labels = len(_Classifier.read(read_json(file), file).id2label or {"0": ""})
    if not any("score.weight" in read_shapes(path) for path in tensor_files(folder)):
        raise UserError(
            f"{folder} has no score.weight, so it is a language model; train a reward model from it with `reward`"
        )
    if labels != 1:
        raise UserError(
            f"{folder} classifies into {labels} labels, a reward model has one; choose another folder"
        )
    return read_config(folder)


def find_tensors(
    folder: Path, config: ModelConfig, shapes: dict[str, tuple[int, ...]]
) -> dict[str, list[Piece]]:
    """Where each parameter is stored: its name → the tensors that hold it. Raises `UserError` unless all have these shapes.

    `shapes` are those of the plain model; of a quantized one, the tensors that stand for a weight are found in its place.
    """
    layers = stored_layers(config)
    expected: dict[str, tuple[int, ...] | None] = {**plain_parameters(config, shapes)}
    expected |= {name: stored.shape for name, stored in layers.items()}
    prefix = "transformer." if config.model_type == "gpt2" else "model."
    source, remedy = "config.json", "use the config.json that belongs to these weights"
    if is_gguf(folder):
        source, remedy = "its header", "copy it again, or use another model"
    headers = {path: read_shapes(path, quantized=bool(layers)) for path in tensor_files(folder)}
    stored = {name: path for path, header in headers.items() for name in header}
    stored_shapes = {name: shape for header in headers.values() for name, shape in header.items()}
    places: dict[str, list[Piece]] = {}
    missing, used = [], set()
    for name, shape in expected.items():
        # All in one, as in the model itself, where transformers was told to keep that form.
        parts = [(name, ())] if name in stored else stored_tensors(name, config)
        for part, index in parts:
            # The first GPT-2 checkpoints, and headless models, leave the prefix out.
            found = part if part in stored else part.removeprefix(prefix)
            if found not in stored:
                missing.append(part)
                continue
            wanted = stored_shapes[found] if shape is None else part_shape(shape, index)
            if stored_shapes[found] != wanted:
                raise UserError(
                    f"{stored[found]}: tensor {found} has shape {list(stored_shapes[found])}, but {source} asks for "
                    f"{list(wanted)}; {remedy}"
                )
            used.add(found)
            places.setdefault(name, []).append(Piece(stored[found], found, index))
    unexpected = [
        name
        for name in stored
        if name not in used and not name.endswith(BUFFERS) and name != "lm_head.weight"  # a tied copy
    ]
    for names, problem in ((missing, "lacks"), (unexpected, "has unexpected")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"{folder} {problem} tensor {names[0]}{more} for a {config.model_type} model of "
                f"{config.num_hidden_layers} layers; {remedy}"
            )
    for name, layer in layers.items():
        _check_codes(places[name][0], layer.types, remedy)
    return places


def _check_codes(piece: Piece, types: tuple[str, ...], remedy: str) -> None:
    """Codes read as numbers, or numbers as codes, would be noise; so would numbers times NaN."""
    with safe_open(piece.path, framework="np") as file:
        found = file.get_slice(piece.name).get_dtype()
        is_scale = piece.name.endswith((*SCALES, *TABLES))
        if found in types and is_scale and found != "BF16":  # NumPy has no bfloat16
            check_values(piece.name, file.get_tensor(piece.name), piece.path)
    if found not in types:
        raise UserError(
            f"{piece.path}: tensor {piece.name} has type {found}, but config.json asks for {' or '.join(types)}; {remedy}"
        )
