"""Initial weights, the same at all three levels: names, shapes, and numbers from NumPy.

Hugging Face's rule (and GPT-2's, Radford et al. 2019, section 2.3): matrices and embeddings are drawn from a normal
distribution with standard deviation `initializer_range`, biases are 0, gains of norms are 1; GPT-2's projections into
the residual stream are smaller by 1/sqrt(2 · layers), because 2 · layers of them add up in it.

Each parameter has a random stream of its own, seeded by (seed, name): neither the order of the parameters nor the
presence of others changes its numbers, and no library's generator is involved.

    uv run python -c "from shared_data.model_files.initialization import *; print(dict(initial_weights(ModelConfig(), seed=0)).keys())"
"""

import math
import zlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from shared_data.model_files.config import ModelConfig
from shared_data.seeds import check_seed


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of a checkpoint: its Hugging Face name and its shape. A tied `lm_head.weight` is not listed."""
    return _gpt2_shapes(config) if config.model_type == "gpt2" else _decoder_shapes(config)


def is_buffer(name: str) -> bool:
    """Whether a checkpoint's tensor is no parameter: no gradient moves it."""
    return name.endswith("e_score_correction_bias")


def reward_parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of a reward model: `score`, one row, in place of the output matrix."""
    shapes = parameter_shapes(config)
    shapes.pop("lm_head.weight", None)
    return shapes | {"score.weight": (1, config.hidden_size)}


def initial_score(config: ModelConfig, seed: int) -> Float[np.ndarray, "1 C"]:
    """Random numbers for a reward model's `score.weight`, as small as those of every other matrix."""
    return _normal(seed, "score.weight", (1, config.hidden_size), config.initializer_range)


def initial_weights(config: ModelConfig, seed: int) -> Iterator[tuple[str, Float[np.ndarray, "..."]]]:
    """Yield (Hugging Face name, float32 array) of every parameter, one at a time. Raises `UserError` for a seed that is none."""
    check_seed(seed)
    for name, shape in parameter_shapes(config).items():
        if name.endswith("bias"):
            yield name, np.zeros(shape, np.float32)
        elif len(shape) == 1 and not name.endswith("sinks"):  # the gain of a norm, or what it adds to 1
            yield name, (np.zeros if config.norm_offset else np.ones)(shape, np.float32)
        else:
            residual = math.sqrt(2 * config.num_hidden_layers) if name.endswith("c_proj.weight") else 1.0
            yield name, _normal(seed, name, shape, config.initializer_range / residual)


def _normal(seed: int, name: str, shape: tuple[int, ...], scale: float) -> Float[np.ndarray, "..."]:
    """Normal numbers with this standard deviation, from the stream of the parameter of this name."""
    # crc32 and not hash(): Python salts the hash of a string anew in every process.
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    weight = generator.standard_normal(shape, dtype=np.float32)
    weight *= np.float32(scale)
    return weight


def _gpt2_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """GPT-2 keeps its matrices as [in, out] (`Conv1D`), and q, k, v in one of them."""
    C, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (V, C),
        "transformer.wpe.weight": (config.max_position_embeddings, C),
    }
    for layer in range(config.num_hidden_layers):
        block = f"transformer.h.{layer}"
        shapes |= {f"{block}.ln_1.weight": (C,), f"{block}.ln_1.bias": (C,)}
        shapes |= {f"{block}.attn.c_attn.weight": (C, 3 * C), f"{block}.attn.c_attn.bias": (3 * C,)}
        shapes |= {f"{block}.attn.c_proj.weight": (C, C), f"{block}.attn.c_proj.bias": (C,)}
        shapes |= {f"{block}.ln_2.weight": (C,), f"{block}.ln_2.bias": (C,)}
        shapes |= {f"{block}.mlp.c_fc.weight": (C, F), f"{block}.mlp.c_fc.bias": (F,)}
        shapes |= {f"{block}.mlp.c_proj.weight": (F, C), f"{block}.mlp.c_proj.bias": (C,)}
    shapes |= {"transformer.ln_f.weight": (C,), "transformer.ln_f.bias": (C,)}
    return shapes | _output_shape(config)


def _decoder_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """All other families keep their matrices as [out, in] (`nn.Linear`), under Llama's names."""
    C = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, C)}
    for layer in range(config.num_hidden_layers):
        block = f"model.layers.{layer}"
        attention = _latent_attention_shapes(config) if config.kv_lora_rank else _attention_shapes(config)
        if config.layer_types[layer] == "indexed_attention":
            attention |= _indexer_shapes(config)
        if config.is_sparse(layer):
            feed_forward = _expert_shapes(config)
        else:
            feed_forward = _gated_shapes(C, config.intermediate_size, config.mlp_bias)
        shapes |= {f"{block}.self_attn.{name}": shape for name, shape in attention.items()}
        shapes |= {f"{block}.mlp.{name}": shape for name, shape in feed_forward.items()}
        shapes |= {f"{block}.input_layernorm.weight": (C,), f"{block}.post_attention_layernorm.weight": (C,)}
        if config.post_norms:
            shapes |= {f"{block}.{place}_feedforward_layernorm.weight": (C,) for place in ("pre", "post")}
    shapes["model.norm.weight"] = (C,)
    return shapes | _output_shape(config)


def _attention_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Queries of H heads, keys and values of K."""
    C, D = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * D, config.num_key_value_heads * D
    bias = config.attention_bias
    shapes: dict[str, tuple[int, ...]] = (
        {"sinks": (config.num_attention_heads,)} if config.attention_sinks else {}
    )
    shapes |= _linear("q_proj", (queries, C), bias) | _linear("k_proj", (keys, C), bias)
    shapes |= _linear("v_proj", (keys, C), bias)
    shapes |= _linear("o_proj", (C, queries), bias and config.attention_output_bias)
    return shapes | ({"q_norm.weight": (D,), "k_norm.weight": (D,)} if config.qk_norm else {})


def _latent_attention_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Queries, and keys with values, each through a narrow matrix (DeepSeek-V2, section 2.1)."""
    C, H, R = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    query = config.qk_nope_head_dim + config.qk_rope_head_dim
    shapes: dict[str, tuple[int, ...]] = {}
    if config.q_lora_rank is None:
        shapes |= {"q_proj.weight": (H * query, C)}
    else:
        shapes |= _linear("q_a_proj", (config.q_lora_rank, C), config.attention_bias)
        shapes |= {
            "q_a_layernorm.weight": (config.q_lora_rank,),
            "q_b_proj.weight": (H * query, config.q_lora_rank),
        }
    shapes |= _linear("kv_a_proj_with_mqa", (R + config.qk_rope_head_dim, C), config.attention_bias)
    shapes |= {"kv_a_layernorm.weight": (R,)}
    shapes |= {"kv_b_proj.weight": (H * (config.qk_nope_head_dim + config.v_head_dim), R)}
    return shapes | _linear("o_proj", (C, H * config.v_head_dim), config.attention_bias)


def _indexer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The lightning indexer (DeepSeek-V3.2): queries of its own heads, one key, a weight of each head."""
    C, H, D = config.hidden_size, config.index_n_heads, config.index_head_dim
    return {
        "indexer.wq_b.weight": (H * D, config.q_lora_rank or C),
        "indexer.wk.weight": (D, C),
        "indexer.k_norm.weight": (D,),
        "indexer.k_norm.bias": (D,),
        "indexer.weights_proj.weight": (H, C),
    }


def _expert_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The router, E experts side by side, and the experts that every token passes."""
    C, E, F = config.hidden_size, config.num_local_experts, config.moe_intermediate_size
    if config.clamped_experts:
        return _linear("router", (E, C), bias=True) | {
            "experts.gate_up_proj": (E, C, 2 * F),
            "experts.gate_up_proj_bias": (E, 2 * F),
            "experts.down_proj": (E, F, C),
            "experts.down_proj_bias": (E, C),
        }
    shapes: dict[str, tuple[int, ...]] = {"gate.weight": (E, C)}
    if config.scoring_func == "sigmoid":
        shapes["gate.e_score_correction_bias"] = (E,)
    shapes |= {"experts.gate_up_proj": (E, 2 * F, C), "experts.down_proj": (E, C, F)}
    if config.n_shared_experts:
        shared = _gated_shapes(C, F * config.n_shared_experts, bias=False)
        shapes |= {f"shared_experts.{name}": shape for name, shape in shared.items()}
    return shapes


def _gated_shapes(C: int, F: int, bias: bool) -> dict[str, tuple[int, ...]]:
    """SwiGLU's three matrices."""
    return (
        _linear("gate_proj", (F, C), bias)
        | _linear("up_proj", (F, C), bias)
        | _linear("down_proj", (C, F), bias)
    )


def _linear(name: str, shape: tuple[int, int], bias: bool) -> dict[str, tuple[int, ...]]:
    """Weight and, where the configuration asks for it, bias."""
    return {f"{name}.weight": shape} | ({f"{name}.bias": (shape[0],)} if bias else {})


def _output_shape(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The output matrix, where it is not the token embedding itself."""
    return {} if config.tie_word_embeddings else {"lm_head.weight": (config.vocab_size, config.hidden_size)}
