"""A model's weights, rearranged once for the decode step: fused, folded, as matrices [in, out].

- Matrices that read the same vector become one: q, k and v; gate and up.
- A norm's scale g goes into the matrix behind it, W (g * n) = (W * g) n, and its bias b into that matrix's bias,
  W (n + b) = W n + W b. So does √C, since n = x / √(mean x² + ε) = √C · x / √(Σ x² + C ε); 1 / √D goes into the queries.
- A bias becomes one more row of its matrix, for an input that is always 1.
- GPT-2: only LayerNorms read the residual stream, and each first subtracts the mean. So the mean may as well be taken out
  of everything that is written there, and then LayerNorm is RMSNorm (Ashkboos et al. 2024, SliceGPT, section 3.2).

What remains for both families is one kind of block. Level 2: the same in torch. Theory: v2_handwritten/inference/decoder.md.

    weights = fuse_weights(model)
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from shared_data.model_files.config import ModelConfig
from shared_data.peft.adapted_model import merged_state_dict
from v3_numpy_deep.autograd import Array
from v3_numpy_deep.models.transformer import Transformer


@dataclass
class DecoderBlock:
    """One block. Q = (H + 2 K) D columns, ordered by key-value head: its query heads, its key head, its value head."""

    qkv: Float[Array, "C1 Q"]
    out: Float[Array, "HD C"]
    out_bias: Float[Array, " C"] | None
    up: Float[Array, "C1 U"]  # llama: gate and up side by side, U = 2 F; gpt2: U = F
    down: Float[Array, "F1 C"]


@dataclass
class DecoderWeights:
    """All weights of a decode step. With biases, C1 = C + 1 and F1 = F + 1: a bias is the weight of an input that is 1."""

    embedding: Float[Array, "V C"]
    positions: Float[Array, "P C"] | None  # None for llama, whose positions are rotations
    blocks: list[DecoderBlock]
    head: Float[Array, "C1 V"]
    has_biases: bool


def fuse_weights(model: Transformer) -> DecoderWeights:
    """Copy a model's weights into the layout of the decode step."""
    config: ModelConfig = model.config
    return (_fuse_gpt2 if config.model_type == "gpt2" else _fuse_llama)(config, merged_state_dict(model))


def _fuse_llama(config: ModelConfig, weights: dict[str, Array]) -> DecoderWeights:
    """Llama stores its matrices [out, in], so a scale of the input multiplies columns."""
    blocks, root_C = [], math.sqrt(config.hidden_size)
    has_biases = config.attention_bias or config.mlp_bias
    for layer in range(config.num_hidden_layers):
        block = _names_below(f"model.layers.{layer}.", weights)
        attention = [block[f"self_attn.{part}_proj.weight"] for part in "qkv"]
        qkv = _group_heads(config, *attention) * (root_C * block["input_layernorm.weight"])
        up = np.concatenate([block["mlp.gate_proj.weight"], block["mlp.up_proj.weight"]])
        up = up * (root_C * block["post_attention_layernorm.weight"])
        qkv_bias = up_bias = None
        if config.attention_bias:
            qkv_bias = _group_heads(config, *(block[f"self_attn.{part}_proj.bias"] for part in "qkv"))
        if config.mlp_bias:
            up_bias = np.concatenate([block["mlp.gate_proj.bias"], block["mlp.up_proj.bias"]])
        blocks.append(
            DecoderBlock(
                qkv=_with_bias(qkv.T, qkv_bias, has_biases),
                out=block["self_attn.o_proj.weight"].T,
                out_bias=block.get("self_attn.o_proj.bias"),
                up=_with_bias(up.T, up_bias, has_biases),
                down=_with_bias(block["mlp.down_proj.weight"].T, block.get("mlp.down_proj.bias"), has_biases),
            )
        )
    embedding = weights["model.embed_tokens.weight"]
    head = embedding if config.tie_word_embeddings else weights["lm_head.weight"]
    head = _with_bias((head * (root_C * weights["model.norm.weight"])).T, None, has_biases)
    return DecoderWeights(embedding, None, blocks, head, has_biases)


def _fuse_gpt2(config: ModelConfig, weights: dict[str, Array]) -> DecoderWeights:
    """GPT-2 stores its matrices [in, out], so a scale of the input multiplies rows."""
    blocks, root_C = [], math.sqrt(config.hidden_size)
    for layer in range(config.num_hidden_layers):
        block = _names_below(f"transformer.h.{layer}.", weights)
        qkv, up = block["attn.c_attn.weight"], block["mlp.c_fc.weight"]
        qkv_bias = block["attn.c_attn.bias"] + block["ln_1.bias"] @ qkv
        up_bias = block["mlp.c_fc.bias"] + block["ln_2.bias"] @ up
        qkv = qkv * (root_C * block["ln_1.weight"])[:, None]
        up = up * (root_C * block["ln_2.weight"])[:, None]
        qkv, qkv_bias = (_group_heads(config, *part) for part in (np.split(qkv.T, 3), np.split(qkv_bias, 3)))
        out, down = _without_mean(block["attn.c_proj.weight"]), _without_mean(block["mlp.c_proj.weight"])
        blocks.append(
            DecoderBlock(
                qkv=_with_bias(qkv.T, qkv_bias, True),
                out=out,
                out_bias=_without_mean(block["attn.c_proj.bias"]),
                up=_with_bias(up, up_bias, True),
                down=_with_bias(down, _without_mean(block["mlp.c_proj.bias"]), True),
            )
        )
    embedding = weights["transformer.wte.weight"]
    head = embedding if config.tie_word_embeddings else weights["lm_head.weight"]
    scaled_head = (head * (root_C * weights["transformer.ln_f.weight"])).T
    return DecoderWeights(
        embedding=_without_mean(embedding),
        positions=_without_mean(weights["transformer.wpe.weight"]),
        blocks=blocks,
        head=_with_bias(scaled_head, head @ weights["transformer.ln_f.bias"], True),
        has_biases=True,
    )


def _names_below(prefix: str, weights: dict[str, Array]) -> dict[str, Array]:
    """The weights whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _with_bias(
    weight: Float[Array, "n m"], bias: Float[Array, " m"] | None, has_biases: bool
) -> Float[Array, "n1 m"]:
    """The bias as one more row of the matrix, where the model has biases at all."""
    if not has_biases:
        return weight
    return np.concatenate([weight, (np.zeros_like(weight[0]) if bias is None else bias)[None]])


def _group_heads(config: ModelConfig, q: Array, k: Array, v: Array) -> Array:
    """Rows of q / sqrt(D), k and v [heads * D, …] in the order of key-value heads, each with its G = H / K query heads.

    A product [B, Q] is then a view [B K, G + 2, D] for any batch size: queries, key and value of each group.
    """
    K, D = config.num_key_value_heads, config.head_dim
    heads = [part.reshape(K, -1, D, *part.shape[1:]) for part in (q * D**-0.5, k, v)]
    grouped = np.concatenate(heads, axis=1)
    return grouped.reshape(-1, *q.shape[1:])


def _without_mean(rows: Float[Array, "*rows C"]) -> Float[Array, "*rows C"]:
    """Take out of each row its mean, which the norms that read it would subtract."""
    return rows - rows.mean(axis=-1, keepdims=True)
