"""A model's weights as the decode step reads them: the matrices themselves, [in, out], not copies.

    matrices   those of the model; q, k and v as one where they lie side by side (models/weight_layout.py), and gate and up
    vectors    norms and biases are small: √C goes into a norm's scale, since x / √(mean x² + ε) = √C · x / √(Σ x² + C ε)

What remains for both families is one kind of block. The arrays are a level's own. Theory: v2_handwritten/inference/decoder.md.

    weights = decoder_weights(model.config, model.state_dict(), side_by_side, torch.cat)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shared_data.model_files.config import ModelConfig

Weights = dict[str, Any]
Join = Callable[[Sequence[Any]], Any]  # vectors, one after the other
SideBySide = Callable[
    [Sequence[Any]], list[Any]
]  # matrices [in, out] as one, where they lie next to each other


@dataclass
class Norm:
    """y = √C g · x / √(Σ x² + C ε), of what has no mean where there is a bias (LayerNorm), + b."""

    scale: Any  # √C g [C]
    bias: Any  # [C] or None


@dataclass
class DecoderBlock:
    """One block: every matrix as [in, out], with the bias that is added to its product."""

    norm: Norm
    qkv: list[Any]  # [C, …]; together Q = (H + 2 K) D columns
    qkv_bias: Any  # [Q] or None
    out: Any  # [H D, C]
    out_bias: Any  # [C] or None
    mlp_norm: Norm
    up: list[Any]  # llama: gate and up [C, F]; gpt2: one matrix
    up_bias: Any
    down: Any  # [F, C]
    down_bias: Any


@dataclass
class DecoderWeights:
    """All weights of a decode step."""

    embedding: Any  # [V, C]
    positions: Any  # [P, C]; None for llama, whose positions are rotations
    blocks: list[DecoderBlock]
    norm: Norm
    head: Any  # [C, V]


def decoder_weights(
    config: ModelConfig, weights: Weights, side_by_side: SideBySide, join: Join
) -> DecoderWeights:
    """The weights of a model of plain blocks, from those of a checkpoint by their names."""
    layers = range(config.num_hidden_layers)
    if config.model_type == "gpt2":
        return _of_gpt2([_names_below(f"transformer.h.{layer}.", weights) for layer in layers], weights)
    blocks = [_names_below(f"model.layers.{layer}.", weights) for layer in layers]
    return _of_llama(blocks, weights, side_by_side, join)


def _of_llama(
    layers: list[Weights], weights: Weights, side_by_side: SideBySide, join: Join
) -> DecoderWeights:
    """Llama keeps its matrices as [out, in], q, k, v and gate, up each for itself."""
    blocks = []
    for block in layers:
        qkv = [f"self_attn.{part}_proj" for part in "qkv"]
        up = ["mlp.gate_proj", "mlp.up_proj"]
        blocks.append(
            DecoderBlock(
                norm=_norm("input_layernorm", block),
                qkv=side_by_side([block[f"{name}.weight"].T for name in qkv]),
                qkv_bias=_joined_bias(qkv, block, join),
                out=block["self_attn.o_proj.weight"].T,
                out_bias=block.get("self_attn.o_proj.bias"),
                mlp_norm=_norm("post_attention_layernorm", block),
                up=side_by_side([block[f"{name}.weight"].T for name in up]),
                up_bias=_joined_bias(up, block, join),
                down=block["mlp.down_proj.weight"].T,
                down_bias=block.get("mlp.down_proj.bias"),
            )
        )
    embedding = weights["model.embed_tokens.weight"]
    head = weights.get("lm_head.weight", embedding)
    return DecoderWeights(embedding, None, blocks, _norm("model.norm", weights), head.T)


def _of_gpt2(layers: list[Weights], weights: Weights) -> DecoderWeights:
    """GPT-2 keeps its matrices as [in, out], and q, k, v as one."""
    blocks = []
    for block in layers:
        blocks.append(
            DecoderBlock(
                norm=_norm("ln_1", block),
                qkv=[block["attn.c_attn.weight"]],
                qkv_bias=block["attn.c_attn.bias"],
                out=block["attn.c_proj.weight"],
                out_bias=block["attn.c_proj.bias"],
                mlp_norm=_norm("ln_2", block),
                up=[block["mlp.c_fc.weight"]],
                up_bias=block["mlp.c_fc.bias"],
                down=block["mlp.c_proj.weight"],
                down_bias=block["mlp.c_proj.bias"],
            )
        )
    embedding, positions = weights["transformer.wte.weight"], weights["transformer.wpe.weight"]
    head = weights.get("lm_head.weight", embedding)
    return DecoderWeights(embedding, positions, blocks, _norm("transformer.ln_f", weights), head.T)


def _names_below(prefix: str, weights: Weights) -> Weights:
    """The weights whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _norm(name: str, weights: Weights) -> Norm:
    scale = weights[f"{name}.weight"]
    return Norm(scale * math.sqrt(len(scale)), weights.get(f"{name}.bias"))


def _joined_bias(names: Sequence[str], weights: Weights, join: Join) -> Any:
    """The biases of some layers one after the other; None where they have none."""
    biases = [weights[f"{name}.bias"] for name in names if f"{name}.bias" in weights]
    return join(biases) if biases else None
