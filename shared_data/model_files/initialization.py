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
    return _gpt2_shapes(config) if config.model_type == "gpt2" else _llama_shapes(config)


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
        elif len(shape) == 1:  # the gain of a norm
            yield name, np.ones(shape, np.float32)
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


def _llama_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Llama keeps its matrices as [out, in] (`nn.Linear`)."""
    C, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, C)}
    for layer in range(config.num_hidden_layers):
        block = f"model.layers.{layer}"
        projections = {
            "q_proj": (queries, C),
            "k_proj": (keys, C),
            "v_proj": (keys, C),
            "o_proj": (C, queries),
        }
        for name, shape in projections.items():
            shapes |= _llama_linear(f"{block}.self_attn.{name}", shape, config.attention_bias)
        for name, shape in {"gate_proj": (F, C), "up_proj": (F, C), "down_proj": (C, F)}.items():
            shapes |= _llama_linear(f"{block}.mlp.{name}", shape, config.mlp_bias)
        shapes |= {f"{block}.input_layernorm.weight": (C,), f"{block}.post_attention_layernorm.weight": (C,)}
    shapes["model.norm.weight"] = (C,)
    return shapes | _output_shape(config)


def _llama_linear(name: str, shape: tuple[int, int], bias: bool) -> dict[str, tuple[int, ...]]:
    """Weight and, where the configuration asks for it, bias."""
    return {f"{name}.weight": shape} | ({f"{name}.bias": (shape[0],)} if bias else {})


def _output_shape(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The output matrix, where it is not the token embedding itself."""
    return {} if config.tie_word_embeddings else {"lm_head.weight": (config.vocab_size, config.hidden_size)}
