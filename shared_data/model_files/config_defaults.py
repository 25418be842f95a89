"""The sizes of a `ModelConfig` that are zero or empty: filled in from the others.

fill_in(config)
"""

import math
from typing import Any


def fill_in(config: Any) -> None:
    """Set the fields that depend on others, and those that the family decides."""
    L = config.num_hidden_layers
    fill = {
        "intermediate_size": _default_intermediate_size(config.model_type, config.hidden_size),
        "num_key_value_heads": config.num_attention_heads,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "hidden_act": config.family.activations[0],
        "layer_types": [_default_layer_type(config, layer) for layer in range(L)],
    }
    if config.family.window == "alternating":
        fill["sliding_window"] = config.family.defaults["sliding_window"]
    if config.family.has("no_rope_layers"):
        fill["no_rope_layers"] = [int((layer + 1) % 4 != 0) for layer in range(L)]
    if config.family.has("query_pre_attn_scalar"):
        fill["query_pre_attn_scalar"] = config.head_dim or config.hidden_size // config.num_attention_heads
    if config.family.has("num_local_experts"):
        fill["num_local_experts"] = 8
    if len(set(config.layer_types)) == 1:  # one kind is that of all layers, however many
        fill["layer_types"] = config.layer_types[:1] * L
        object.__setattr__(config, "layer_types", [])
    _fill(config, fill)
    if config.family.has("kv_lora_rank"):  # the proportions of DeepSeek-V2, section 3.1.2
        D = config.hidden_size // config.num_attention_heads
        _fill(config, {"kv_lora_rank": 4 * D, "qk_nope_head_dim": D, "v_head_dim": D})
        _fill(config, {"qk_rope_head_dim": 2 * math.ceil(D / 4)})
        if config.family.has("index_topk"):  # V3.2 compresses its queries always
            _fill(config, {"q_lora_rank": max(1, config.hidden_size // 2)})
        object.__setattr__(config, "head_dim", config.qk_rope_head_dim)
    if config.num_local_experts:
        _fill(config, {"moe_intermediate_size": config.intermediate_size})
    object.__setattr__(config, "mlp_only_layers", sorted(set(config.mlp_only_layers)))
    for name, value in config.family.blocks.items():
        object.__setattr__(config, name, value)


def _fill(config: Any, defaults: dict[str, Any]) -> None:
    """Set what is zero or empty."""
    for name, default in defaults.items():
        if not getattr(config, name):
            object.__setattr__(config, name, default)


def _default_layer_type(config: Any, layer: int) -> str:
    """The kind of a layer's attention where nothing names it."""
    has_window = config.family.window == "all" and config.sliding_window is not None
    if has_window or (config.family.window == "alternating" and layer % 2 == 0):
        return "sliding_attention"
    return str(config.family.layer_types[0])


def _default_intermediate_size(model_type: str, hidden_size: int) -> int:
    """F. SwiGLU has three matrices instead of two, so Llama takes 2/3 of 4 C to keep the parameter count (Shazeer 2020)."""
    return 4 * hidden_size if model_type == "gpt2" else 32 * math.ceil(8 * hidden_size / 3 / 32)
