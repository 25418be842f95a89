"""Small GGUF files as llama.cpp writes them: by the package `gguf`, with its names, types and order of rows."""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH
from gguf.quants import quantize

from shared_data.model_files.config import ModelConfig

ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "gpt2": MODEL_ARCH.GPT2,
}
# Where the float16 scales of a block begin, of the types that the package does not write.
SCALES = {"Q4_K": (0, 2), "Q6_K": (208,)}
SIZES = {"Q4_K": 2e-4, "Q6_K": 5e-5}  # of the scales: weights are then about 0.1


def blocks(weight: np.ndarray, name: str, seed: int = 0) -> np.ndarray:
    """A matrix in a type, as rows of bytes: its own numbers, or random ones where the package cannot write them."""
    kind = GGMLQuantizationType[name]
    if name not in SCALES:
        data = quantize(weight, kind)
        return data.view(np.uint8).reshape(len(weight), -1)
    rng = np.random.default_rng(seed)
    size, width = GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (weight.size // size, width), np.uint8)
    for place in SCALES[name]:
        scales = (rng.standard_normal(len(data)) * SIZES[name]).astype(np.float16)
        data[:, place : place + 2] = scales.view(np.uint8).reshape(-1, 2)
    return data.reshape(len(weight), -1)


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's conversion does to the rows of queries and keys."""
    return (
        weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def write_model(
    path: Path,
    config: ModelConfig,
    weights: dict[str, np.ndarray],
    kind: str = "F32",
    more: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> None:
    """A model without a tokenizer; `more` are entries of the architecture, `tensors` are added as they are."""
    name = config.model_type
    writer = GGUFWriter(path, name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if name == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    for key, value in (more or {}).items():
        key = f"{name}.{key}"
        add = {
            str: writer.add_string,
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
        }
        add[type(value)](key, value)
    for extra, array in (tensors or {}).items():
        writer.add_tensor(extra, array)
    names = get_tensor_name_map(ARCHITECTURES[name], config.num_hidden_layers)
    for hf, weight in weights.items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
            hf.split(".")[-2]
        )
        if name == "llama" and heads:
            weight = permuted(weight, heads)
        if name == "gpt2" and ".c_" in hf and weight.ndim == 2:
            weight = np.ascontiguousarray(weight.T)
        theirs = names.get_name(hf, try_suffixes=(".weight", ".bias"))
        assert theirs, hf
        if weight.ndim == 1 or kind == "F32":
            writer.add_tensor(theirs, weight.astype(np.float32))
        else:
            writer.add_tensor(theirs, blocks(weight, kind, len(hf)), raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
