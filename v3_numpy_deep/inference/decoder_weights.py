"""A model's weights, rearranged once for the decode step: fused, folded, stored [in, out].

- Matrices that read the same vector become one: q, k and v; gate and up.
- A norm's scale g goes into the matrix behind it, W (g * n) = (W * g) n, and its bias b into that matrix's bias,
  W (n + b) = W n + W b. So does √C, since n = x / √(mean x² + ε) = √C · x / √(Σ x² + C ε); 1 / √D goes into the queries.
- GPT-2: only LayerNorms read the residual stream, and each first subtracts the mean. So the mean may as well be taken out
  of everything that is written there, and then LayerNorm is RMSNorm (Ashkboos et al. 2024, SliceGPT, section 3.1).

What remains for both families is one kind of block. Level 2: the same in torch. Theory: v2_handwritten/inference/decoder.md.

    weights = fuse_weights(model)
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from v3_numpy_deep.autograd import Array
from v3_numpy_deep.models.config import ModelConfig
from v3_numpy_deep.models.transformer import Transformer


@dataclass
class DecoderBlock:
    """One block. Q = (H + 2 K) D columns, ordered by key-value head: its query heads, its key head, its value head."""

    qkv: Float[Array, "C Q"]
    qkv_bias: Float[Array, " Q"] | None
    out: Float[Array, "HD C"]
    out_bias: Float[Array, " C"] | None
    up: Float[Array, "C U"]  # llama: gate and up side by side, U = 2 F; gpt2: U = F
    up_bias: Float[Array, " U"] | None
    down: Float[Array, "F C"]
    down_bias: Float[Array, " C"] | None


@dataclass
class DecoderWeights:
    """All weights of a decode step; `positions` is None for llama, whose positions are rotations."""

    embedding: Float[Array, "V C"]
    positions: Float[Array, "P C"] | None
    blocks: list[DecoderBlock]
    head: Float[Array, "C V"]
    head_bias: Float[Array, " V"] | None


def fuse_weights(model: Transformer) -> DecoderWeights:
    """Copy a model's weights into the layout of the decode step."""
    config: ModelConfig = model.config
    return (_fuse_gpt2 if config.model_type == "gpt2" else _fuse_llama)(config, model.state_dict())


def _fuse_llama(config: ModelConfig, weights: dict[str, Array]) -> DecoderWeights:
    """Llama stores its matrices [out, in], so a scale of the input multiplies columns."""
    blocks, root_C = [], math.sqrt(config.hidden_size)
    for layer in range(config.num_hidden_layers):
        block = {
            name.removeprefix(f"model.layers.{layer}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        qkv_scale, up_scale = (
            root_C * block[f"{norm}_layernorm.weight"] for norm in ("input", "post_attention")
        )
        qkv = [block[f"self_attn.{part}_proj.weight"] * qkv_scale for part in "qkv"]
        qkv_bias = [block[f"self_attn.{part}_proj.bias"] for part in "qkv"] if config.attention_bias else None
        up = np.concatenate([block["mlp.gate_proj.weight"], block["mlp.up_proj.weight"]]) * up_scale
        up_bias = [block[f"mlp.{part}_proj.bias"] for part in ("gate", "up")] if config.mlp_bias else None
        blocks.append(
            DecoderBlock(
                qkv=_group_heads(config, *qkv).T.copy(),
                qkv_bias=None if qkv_bias is None else _group_heads(config, *qkv_bias),
                out=block["self_attn.o_proj.weight"].T.copy(),
                out_bias=block.get("self_attn.o_proj.bias"),
                up=up.T.copy(),
                up_bias=None if up_bias is None else np.concatenate(up_bias),
                down=block["mlp.down_proj.weight"].T.copy(),
                down_bias=block.get("mlp.down_proj.bias"),
            )
        )
    embedding = weights["model.embed_tokens.weight"]
    head = embedding if config.tie_word_embeddings else weights["lm_head.weight"]
    head = (head * (root_C * weights["model.norm.weight"])).T.copy()
    return DecoderWeights(embedding, None, blocks, head, None)


def _fuse_gpt2(config: ModelConfig, weights: dict[str, Array]) -> DecoderWeights:
    """GPT-2 stores its matrices [in, out], so a scale of the input multiplies rows."""
    blocks, root_C = [], math.sqrt(config.hidden_size)
    for layer in range(config.num_hidden_layers):
        block = {
            name.removeprefix(f"transformer.h.{layer}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"transformer.h.{layer}.")
        }
        qkv, up = block["attn.c_attn.weight"], block["mlp.c_fc.weight"]
        qkv_bias = block["attn.c_attn.bias"] + block["ln_1.bias"] @ qkv
        qkv = qkv * (root_C * block["ln_1.weight"])[:, None]
        blocks.append(
            DecoderBlock(
                qkv=_group_heads(config, *np.split(qkv.T, 3)).T.copy(),
                qkv_bias=_group_heads(config, *np.split(qkv_bias, 3)),
                out=_without_mean(block["attn.c_proj.weight"]),
                out_bias=_without_mean(block["attn.c_proj.bias"]),
                up=up * (root_C * block["ln_2.weight"])[:, None],
                up_bias=block["mlp.c_fc.bias"] + block["ln_2.bias"] @ up,
                down=_without_mean(block["mlp.c_proj.weight"]),
                down_bias=_without_mean(block["mlp.c_proj.bias"]),
            )
        )
    embedding = weights["transformer.wte.weight"]
    head = embedding if config.tie_word_embeddings else weights["lm_head.weight"]
    return DecoderWeights(
        embedding=_without_mean(embedding),
        positions=_without_mean(weights["transformer.wpe.weight"]),
        blocks=blocks,
        head=(head * (root_C * weights["transformer.ln_f.weight"])).T.copy(),
        head_bias=head @ weights["transformer.ln_f.bias"],
    )


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
