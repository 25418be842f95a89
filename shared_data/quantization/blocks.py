"""Which layers of a block read the same vector, and what writes it: for calibration, and for AWQ, which moves scales between the two.

uv run python -c "from shared_data.quantization.blocks import *; print(input_groups(ModelConfig(num_hidden_layers=1)))"
"""

from typing import NamedTuple

from shared_data.model_files.config import ModelConfig
from shared_data.quantization.layers import quantized_layers

_SAME_INPUT = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj"),
)


class Writer(NamedTuple):
    """What writes the input of some layers: a norm, or the last `features` outputs of a linear layer."""

    path: str
    is_norm: bool
    features: int


def block_paths(config: ModelConfig) -> list[str]:
    """The paths of the blocks, in order."""
    prefix = "transformer.h" if config.model_type == "gpt2" else "model.layers"
    return [f"{prefix}.{layer}" for layer in range(config.num_hidden_layers)]


def input_groups(config: ModelConfig) -> list[list[list[str]]]:
    """For each block, its quantized layers by their paths, those that read the same vector together."""
    blocks = []
    for block in block_paths(config):
        groups: dict[str, list[str]] = {}
        for path in quantized_layers(config):
            if path.startswith(f"{block}."):
                name = path.removeprefix(f"{block}.")
                first = next((names[0] for names in _SAME_INPUT if name in names), name)
                groups.setdefault(first, []).append(path)
        blocks.append(list(groups.values()))
    return blocks


def writer_of(config: ModelConfig, path: str) -> Writer | None:
    """What writes the input of a layer of GPT-2's or Llama's blocks, where a factor can move from the one to the other; else None.

    Values pass through attention as sums over positions, so a factor of a channel passes too, unless heads share them (K < H). Through GELU no
    factor passes; what `up_proj` writes is only multiplied.
    """
    block, _, name = path.rpartition(".")
    block = block.rpartition(".")[0]
    C = config.hidden_size
    feed_forward_norm = "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"
    writers = {
        "q_proj": Writer(f"{block}.input_layernorm", True, C),
        "gate_proj": Writer(f"{block}.{feed_forward_norm}", True, C),
        "down_proj": Writer(f"{block}.mlp.up_proj", False, config.intermediate_size),
        "c_attn": Writer(f"{block}.ln_1", True, C),
        "c_fc": Writer(f"{block}.ln_2", True, C),
    }
    if name == "o_proj" and config.num_key_value_heads == config.num_attention_heads:
        return Writer(f"{block}.self_attn.v_proj", False, config.num_attention_heads * config.head_dim)
    if name == "c_proj" and path.endswith("attn.c_proj"):
        return Writer(f"{block}.attn.c_attn", False, C)  # its values are the last of q, k and v
    return writers.get(name)
