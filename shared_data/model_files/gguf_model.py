"""A model in a GGUF file as if it were a Hugging Face folder: the content of its `config.json`, its tensors by our names.

What the file says is computed or refused by name, as in a config.json (config_file.py). Mistral's files call themselves `llama`, which they
are without their window.

    uv run python -c "from shared_data.model_files.gguf_model import *; print(config_json(read_gguf('model.gguf')))"
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from shared_data.errors import UserError
from shared_data.model_files.families import FAMILIES
from shared_data.model_files.gguf import GgufFile, read_gguf
from shared_data.model_files.gguf_names import (
    ARCHITECTURES,
    ROPE_FACTORS,
    from_gguf,
    gguf_name,
    hf_name,
    is_transposed,
)

# Entries that are fields of `ModelConfig`.
FIELDS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_COUNTS = ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count")
# Entries that are read in ways of their own, and those that change no number. Of the last, each holds for one value.
_READ_APART = ("attention.value_length", "rope.freq_base", "rope.dimension_count", "vocab_size")
_NEUTRAL = ("expert_used_count", "rope.scaling.finetuned", "tensor_data_layout")
_USUAL = {"attention.causal": True, "rope.scaling.attn_factor": 1.0}
_END_TOKENS = ("eos", "eot", "eom")  # of a text, of a turn, of a message
# Llama 3's constants, which its files do not name: they have the factors of the frequencies instead.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def config_json(file: GgufFile) -> dict[str, Any]:
    """The content of the config.json of the same model. Raises `UserError` for an architecture, an entry or a tensor that is not supported."""
    architecture = _architecture(file)
    entries = {
        key.removeprefix(f"{architecture}."): _decimal(value)
        for key, value in file.metadata.items()
        if key.startswith(f"{architecture}.")
    }
    epsilon = f"attention.layer_norm_{'' if architecture == 'gpt2' else 'rms_'}epsilon"
    for name, kind in (*((name, int) for name in _COUNTS), (epsilon, float)):
        if type(entries.get(name)) is not kind or entries[name] <= 0:
            raise UserError(f"{file.path} has {architecture}.{name} {entries.get(name)!r:.60}; copy it again")
    heads = entries["attention.head_count"]
    entries.setdefault("attention.head_count_kv", heads)
    entries.setdefault("attention.key_length", entries["embedding_length"] // heads)
    scaling = _rope_scaling(file, entries)
    _check_entries(file, architecture, entries)
    names = FAMILIES[architecture].names
    config = {
        names[field]: entries[key] for key, field in FIELDS.items() if key in entries and field in names
    }
    tensors = {hf_name(architecture, name) for name in file.tensors}
    ids = {name: file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", *_END_TOKENS)}
    for name, id in ids.items():
        if id is not None and type(id) is not int:
            raise UserError(f"{file.path} has {name}_token_id {id!r:.60}, not a number; copy it again")
    ends = list(dict.fromkeys(ids[name] for name in _END_TOKENS if ids[name] is not None))
    config |= {
        "model_type": architecture,
        "vocab_size": _vocab_size(file, entries),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "bos_token_id": ids["bos"],
        "eos_token_id": ends if len(ends) > 1 else ends[0] if ends else None,
    }
    for name, parts in (("attention_bias", (".q_proj.", ".o_proj.")), ("mlp_bias", (".up_proj.",))):
        if name in names:
            config[name] = any(part + "bias" in tensor for tensor in tensors for part in parts)
    # The file says nothing about training; GPT-2's own default would be 0.1.
    config |= {
        names[name]: 0.0 for name in ("embd_pdrop", "attention_dropout", "resid_pdrop") if name in names
    }
    if "num_key_value_heads" in names:
        config |= {"rope_theta": entries.get("rope.freq_base", 10_000.0), "rope_scaling": scaling}
    return config


def _architecture(file: GgufFile) -> str:
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise UserError(
            f"{file.path} holds a model of the architecture {architecture!r:.60}; supported are {', '.join(ARCHITECTURES)}"
        )
    return architecture


def _decimal(value: Any) -> Any:
    """A number as it was written before it became a float32: 1e-5, not 9.99999974e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _check_entries(file: GgufFile, architecture: str, entries: dict[str, Any]) -> None:
    """Refuse what is not computed: entries that nothing here knows, and a head that is rotated in part."""
    known = {*FIELDS, *_READ_APART, *_NEUTRAL}
    for name, value in entries.items():
        if name not in known and value not in (None, False, 0, "", [], _USUAL.get(name, 0)):
            raise UserError(
                f"{file.path} sets {architecture}.{name} = {value!r:.60}, which is not supported; use another model"
            )
    head_dim = entries["attention.key_length"]
    for name in ("attention.value_length", "rope.dimension_count"):
        if entries.get(name, head_dim) != head_dim:
            raise UserError(
                f"{file.path} sets {architecture}.{name} = {entries[name]!r:.60} where a head has {head_dim!r:.60} numbers, which is not "
                "supported; use another model"
            )


def _vocab_size(file: GgufFile, entries: dict[str, Any]) -> int:
    """As many as there are embeddings."""
    if "token_embd.weight" not in file.tensors:
        raise UserError(f"{file.path} has no tensor token_embd.weight; copy it again")
    found = file.tensors["token_embd.weight"].shape[0]
    if entries.get("vocab_size", found) != found:
        raise UserError(
            f"{file.path} names a vocabulary of {entries['vocab_size']!r:.60}, and has {found} embeddings; copy it again"
        )
    return found


def _rope_scaling(file: GgufFile, entries: dict[str, Any]) -> dict[str, Any] | None:
    """The `rope_scaling` of the file; takes its entries out of `entries`."""
    kind, factor = entries.pop("rope.scaling.type", None), entries.pop("rope.scaling.factor", None)
    old_factor = entries.pop("rope.scale_linear", None)
    original = entries.pop("rope.scaling.original_context_length", None)
    betas = {name: entries.pop(f"rope.scaling.yarn_{name}", None) for name in ("beta_fast", "beta_slow")}
    if ROPE_FACTORS in file.tensors:
        if kind not in (None, "none"):
            raise UserError(
                f"{file.path} has {ROPE_FACTORS} and rope scaling {kind!r:.60}, which is not supported"
            )
        return _llama3(file, entries, original)
    if kind is None and old_factor not in (None, 0.0, 1.0):
        kind, factor = "linear", old_factor
    if kind in (None, "none"):
        return None
    scaling = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        scaling |= {"original_max_position_embeddings": original, **betas}
    return {name: value for name, value in scaling.items() if value is not None}


def _llama3(file: GgufFile, entries: dict[str, Any], original: Any) -> dict[str, Any]:
    """Llama 3.1's scaling, where its formula gives the factors of the file; any other factors are refused."""
    factors = file.array(ROPE_FACTORS).reshape(-1)
    theta = entries.get("rope.freq_base", 10_000.0)
    for name, value in (("rope.freq_base", theta), ("rope.scaling.original_context_length", original)):
        if value is not None and (type(value) not in (int, float) or not 0 < value < 1e15):
            raise UserError(f"{file.path} has {name} {value!r:.60}; copy it again")
    constants = LLAMA3 | ({} if original is None else {"original_max_position_embeddings": original})
    kept = _kept_share(constants, theta, 2 * len(factors))
    with np.errstate(divide="ignore", invalid="ignore"):  # the slowest pair is scaled most
        factor = float((1 - kept[-1]) / (1 / factors[-1].astype(np.float64) - kept[-1]))
    scaling = {"rope_type": "llama3", "factor": float(f"{factor:.6g}"), **constants}
    if not np.allclose(factors, llama3_factors(scaling, theta, 2 * len(factors)), rtol=1e-5, atol=0):
        raise UserError(
            f"{file.path} has a {ROPE_FACTORS} that is not Llama 3's, which is not supported; use another model"
        )
    return scaling


def llama3_factors(scaling: dict[str, Any], theta: float, D: int) -> Float32[np.ndarray, " half"]:
    """What each rotary frequency is divided by (Llama 3.1; the formula of rope.py)."""
    kept = _kept_share(scaling, theta, D)
    return (1 / (kept + (1 - kept) / scaling["factor"])).astype(np.float32)


def _kept_share(scaling: dict[str, Any], theta: float, D: int) -> Float64[np.ndarray, " half"]:
    """How much of each frequency is kept: all of those that turn often within the original length, nothing of those that hardly turn."""
    frequencies = theta ** (-np.arange(0, D, 2, dtype=np.float64) / D)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    return np.clip((turns - low) / (high - low), 0.0, 1.0)


def weight_shapes(path: Path | str) -> dict[str, tuple[int, ...]]:
    """Our names and shapes of the tensors of a file. Raises `UserError` if it is damaged or its architecture is not supported."""
    file = read_gguf(path)
    architecture = _architecture(file)
    shapes = {
        hf_name(architecture, name): tensor.shape
        for name, tensor in file.tensors.items()
        if name != ROPE_FACTORS
    }
    return {
        name: shape[::-1] if is_transposed(architecture, name) else shape for name, shape in shapes.items()
    }


def read_weight(path: Path | str, name: str) -> Float32[np.ndarray, "..."]:
    """The numbers of a tensor by our name, as float32 and in our order."""
    file = read_gguf(path)
    architecture = _architecture(file)
    heads = file.metadata[f"{architecture}.attention.head_count"]
    key_heads = file.metadata.get(f"{architecture}.attention.head_count_kv", heads)
    return from_gguf(architecture, name, file.array(gguf_name(architecture, name)), heads, key_heads)
