"""Hugging Face folders in and out: `config.json`, `model.safetensors` (or shards with an index), the tokenizer's files.

Everything is checked before anything is built: the architecture, the name and the shape of every tensor. What we save,
`AutoModelForCausalLM.from_pretrained(folder)` loads; what transformers saves of GPT-2 and Llama, we load. No pickle is
read or written (safetensors is a JSON header and the raw numbers).

Level 1: `save_pretrained` and `from_pretrained`. Level 3: the same functions over NumPy.

    python -c "from v2_handwritten.models.checkpoint import load_model; print(load_model('runs/v2/tiny/pretrain').config)"
"""

import struct
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from shared_data.errors import UserError
from shared_data.files import atomic_write, read_json, write_json
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.initialization import parameter_shapes
from v2_handwritten.models.transformer import Transformer

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)
# Constants that older versions of transformers saved among the weights: causal masks and rotary frequencies.
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
_FLOAT_TYPES = ("F32", "F16", "BF16", "F64")


def save_model(model: Transformer, folder: Path | str, tokenizer_folder: Path | str | None = None) -> None:
    """Write the model as a Hugging Face folder, with a copy of the tokenizer's files.

    A tied output matrix is left out, as transformers does. Each file appears whole or not at all.
    """
    folder = Path(folder)
    weights = dict(model.named_parameters())  # a tied matrix appears here once, as the embedding
    tensors = {name: weights[name].detach().contiguous().cpu() for name in parameter_shapes(model.config)}
    dtype = str(model.lm_head.weight.dtype).removeprefix("torch.")
    with atomic_write(folder / "model.safetensors") as file:
        file.write(save(tensors, metadata={"format": "pt"}))
    write_json(folder / "config.json", model.config.to_hf() | {"dtype": dtype})
    tokens = {name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id")}
    write_json(folder / "generation_config.json", {name: id for name, id in tokens.items() if id is not None})
    if tokenizer_folder is not None:
        for name in _TOKENIZER_FILES:
            source = Path(tokenizer_folder) / name
            if source.is_file():
                with atomic_write(folder / name) as file:
                    file.write(source.read_bytes())


def load_model(
    folder: Path | str, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> Transformer:
    """Read a Hugging Face folder of a GPT-2 or Llama model. `dtype` None keeps the checkpoint's own type.

    Raises `UserError` for another architecture, a missing, superfluous or wrongly shaped tensor, or a damaged file.
    """
    folder = Path(folder)
    config = ModelConfig.from_hf(read_json(folder / "config.json"))
    files = _tensor_files(folder)
    places = _match_names(config, files, folder)
    tensors = {}
    for name, (path, stored_name) in places.items():
        tensor = _read_tensor(path, stored_name)
        tensors[name] = tensor.to(device=device, dtype=dtype)
    if config.tie_word_embeddings:
        embedding = "transformer.wte.weight" if config.model_type == "gpt2" else "model.embed_tokens.weight"
        tensors["lm_head.weight"] = tensors[embedding]
    with torch.device("meta"):  # shapes without memory: the weights are put in place, not copied
        model = Transformer(config)
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    return model.requires_grad_()


def _read_shapes(path: Path | str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the floating-point tensors of a safetensors file, from its header."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            for name, piece in slices.items():
                if piece.get_dtype() not in _FLOAT_TYPES and not name.endswith(_BUFFERS):
                    raise UserError(
                        f"{path}: tensor {name} has type {piece.get_dtype()}; only {', '.join(_FLOAT_TYPES)} weights can be read"
                    )
            return {name: tuple(piece.get_shape()) for name, piece in slices.items()}
    except (SafetensorError, OSError, struct.error) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}); copy it again") from error


def _read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a safetensors file whose header was read before, in memory of torch's own.

    In a file tensors begin anywhere, in torch's memory at multiples of 64 bytes. Matrix products of one and the same matrix may round
    differently by where it begins (they do on an AMD EPYC), and a run that was killed would not end as if it never was.
    """
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name).clone()


def _tensor_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or those that an index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        pickle = any(folder.glob("*.bin"))
        remedy = "convert its pytorch_model.bin to safetensors" if pickle else "check the path"
        raise UserError(f"{folder} has no model.safetensors; {remedy}")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map; copy it again")
    paths = [folder / name for name in sorted(set(weight_map.values()))]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is missing, but {index.name} names it; copy it too")
    return paths


def _match_names(config: ModelConfig, files: list[Path], folder: Path) -> dict[str, tuple[Path, str]]:
    """Where each parameter of the model is stored: our name → (file, its name there). Raises `UserError` on any mismatch."""
    expected = parameter_shapes(config)
    prefix = "transformer." if config.model_type == "gpt2" else "model."
    places, unexpected = {}, []
    for path in files:
        for stored_name, shape in _read_shapes(path).items():
            # The first GPT-2 checkpoints, and headless models, leave the prefix out.
            name = stored_name if stored_name in expected else prefix + stored_name
            if name in expected:
                if shape != expected[name]:
                    raise UserError(
                        f"{path}: tensor {stored_name} has shape {list(shape)}, but config.json asks for {list(expected[name])}; "
                        "use the config.json that belongs to these weights"
                    )
                places[name] = (path, stored_name)
            elif (
                not stored_name.endswith(_BUFFERS) and stored_name != "lm_head.weight"
            ):  # a tied copy may be there
                unexpected.append(stored_name)
    missing = [name for name in expected if name not in places]
    for names, problem in ((missing, "lacks"), (unexpected, "has unexpected")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"{folder} {problem} tensor {names[0]}{more} for a {config.model_type} model of "
                f"{config.num_hidden_layers} layers; use the config.json that belongs to these weights"
            )
    return {name: places[name] for name in expected}
