"""The tensors of a GGUF file by our names, which are transformers', and what llama.cpp changes about them.

llama.cpp stores the queries and keys of the architecture `llama` for a rotation of neighbouring pairs, where transformers rotates halves
(rope.py); Qwen's stay as they are. GPT-2's matrices stand transposed, since transformers stores them as [inputs, outputs]. Everything else
differs in its name only.

    uv run python -c "from shared_data.model_files.gguf_names import *; print(hf_name('llama', 'blk.3.attn_q.weight'))"
"""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from shared_data.model_files.rope import half_to_interleaved, interleaved_to_half

Weight = Float32[np.ndarray, "..."]


class Names(NamedTuple):
    """What the tensors outside of the layers and those of a layer are called, and where our names of a layer begin."""

    outer: dict[str, str]
    layer: dict[str, str]
    prefix: str


_DECODER = Names(
    {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"},
    {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    },
    "model.layers.",
)
_GPT2 = Names(
    {
        "token_embd": "transformer.wte",
        "position_embd": "transformer.wpe",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
    },
    {
        "attn_norm": "ln_1",
        "attn_qkv": "attn.c_attn",
        "attn_output": "attn.c_proj",
        "ffn_norm": "ln_2",
        "ffn_up": "mlp.c_fc",
        "ffn_down": "mlp.c_proj",
    },
    "transformer.h.",
)
ARCHITECTURES = {"llama": _DECODER, "qwen2": _DECODER, "qwen3": _DECODER, "gpt2": _GPT2}
ROPE_FACTORS = (
    "rope_freqs.weight"  # by which llama.cpp divides the rotary frequencies: no parameter of the model
)


def hf_name(architecture: str, name: str) -> str:
    """Our name of a tensor; a tensor that is none of the architecture's keeps its own."""
    names = ARCHITECTURES[architecture]
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        layer, part, kind = match.groups()
        return f"{names.prefix}{layer}.{names.layer[part]}.{kind}" if part in names.layer else name
    part, _, kind = name.partition(".")
    return f"{names.outer[part]}.{kind}" if part in names.outer else name


def gguf_name(architecture: str, name: str) -> str:
    """The inverse of `hf_name`."""
    names = ARCHITECTURES[architecture]
    part, _, kind = name.rpartition(".")
    if name.startswith(names.prefix):
        layer, _, part = part.removeprefix(names.prefix).partition(".")
        return f"blk.{layer}.{_inverse(names.layer)[part]}.{kind}"
    return f"{_inverse(names.outer)[part]}.{kind}"


def _inverse(names: dict[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in names.items()}


def is_transposed(architecture: str, name: str) -> bool:
    """Whether the file has the transpose of our matrix; `name` is ours."""
    return architecture == "gpt2" and ".h." in name and ".c_" in name and name.endswith("weight")


def from_gguf(architecture: str, name: str, weight: Weight, heads: int, key_heads: int) -> Weight:
    """The numbers of a tensor, by our name, in our order."""
    if is_transposed(architecture, name):
        return np.ascontiguousarray(weight.T)
    rotated_heads = _rotated_heads(architecture, name, heads, key_heads)
    return interleaved_to_half(weight, rotated_heads) if rotated_heads else weight


def to_gguf(architecture: str, name: str, weight: Weight, heads: int, key_heads: int) -> Weight:
    """The inverse of `from_gguf`."""
    if is_transposed(architecture, name):
        return np.ascontiguousarray(weight.T)
    rotated_heads = _rotated_heads(architecture, name, heads, key_heads)
    return half_to_interleaved(weight, rotated_heads) if rotated_heads else weight


def _rotated_heads(architecture: str, name: str, heads: int, key_heads: int) -> int:
    """How many heads the rows are that stand in another order in the file; 0 where they do not."""
    if architecture != "llama":
        return 0
    return heads if ".q_proj." in name else key_heads if ".k_proj." in name else 0
