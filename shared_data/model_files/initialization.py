"""Initial weights, the same at all three levels: names, shapes, and numbers from NumPy.

Hugging Face's rule (and GPT-2's, Radford et al. 2019, section 2.3): matrices and embeddings are drawn from a normal
distribution with standard deviation `initializer_range`, biases are 0, gains of norms are 1; GPT-2's projections into
the residual stream are smaller by 1/sqrt(2 · layers), because 2 · layers of them add up in it.

Each parameter has a random stream of its own, seeded by (seed, name): neither the order of the parameters nor the
presence of others changes its numbers, and no library's generator is involved. All levels have this file, word for word.

    python -c "from shared_data.model_files.initialization import *; print(dict(initial_weights(ModelConfig(), seed=0)).keys())"
"""

import math
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float

from shared_data.model_files.config import ModelConfig

# Where a circuit is laid out (`induction_heads`):
_MEAN = 0.7  # mean of a token's numbers, in standard deviations
_PEAK = 8.0  # score of the token before in the previous-token head
_RANDOM = 0.3  # what is left of that head's random matrices
_ATTENTION, _FEED_FORWARD = 0.5, 0.1  # what is left of the matrices that write into the residual stream


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


def initial_weights(
    config: ModelConfig, seed: int, equal_query_key: bool = False, induction_heads: bool = False
) -> Iterator[tuple[str, Float[np.ndarray, "..."]]]:
    """Yield (Hugging Face name, float32 array) of every parameter, one at a time.

    equal_query_key: the matrix of the keys starts as that of the queries, as in Trockman & Kolter 2023 (transformer.md). With fewer
    key heads than query heads, each key head starts as the first query head that reads it.
    induction_heads: the first two layers start as the circuit of Olsson et al. 2022 that finds what followed a token earlier, all
    layers but the first copy what they attend to, and what is random writes little (transformer.md). For Llama with two layers or
    more.
    """
    shapes = parameter_shapes(config)

    def drawn(name: str) -> Float[np.ndarray, "..."]:
        return _random_weight(config, seed, name, shapes, equal_query_key)

    for name in shapes:
        yield name, _induction_weight(config, name, drawn) if induction_heads else drawn(name)


def _random_weight(
    config: ModelConfig, seed: int, name: str, shapes: dict[str, tuple[int, ...]], equal_query_key: bool
) -> Float[np.ndarray, "..."]:
    """The numbers that a parameter starts with where no circuit is laid out."""
    shape = shapes[name]
    if name.endswith("bias"):
        return np.zeros(shape, np.float32)
    if len(shape) == 1:  # the gain of a norm
        return np.ones(shape, np.float32)
    scale = config.initializer_range
    if name.endswith("c_proj.weight"):
        scale /= math.sqrt(2 * config.num_hidden_layers)
    source = name.replace("k_proj", "q_proj") if equal_query_key else name
    weight = _normal(seed, source, shapes[source], scale)
    if equal_query_key and name.endswith("k_proj.weight"):
        weight = _by_key_head(config, weight)[:, 0].reshape(shape)
    elif equal_query_key and name.endswith("c_attn.weight"):  # q, k and v side by side
        queries, keys, _ = np.split(weight, 3, axis=1)
        keys[:] = queries
    return weight


def _by_key_head(config: ModelConfig, queries: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Rows for query heads [H D, C] as [K, H / K, D, C]: which heads read the same key head."""
    groups = config.num_attention_heads // config.num_key_value_heads
    return queries.reshape(config.num_key_value_heads, groups, config.head_dim, -1)


def _induction_weight(
    config: ModelConfig, name: str, drawn: Callable[[str], Float[np.ndarray, "..."]]
) -> Float[np.ndarray, "..."]:
    """`drawn(name)`, changed where the parameter has a part in the circuit; transformer.md derives each line."""
    weight = drawn(name)
    C, D, K = config.hidden_size, config.head_dim, config.num_key_value_heads
    if name == "model.embed_tokens.weight":
        # The mean of a token's numbers carries nothing but "here is a token": the same for all.
        return weight - weight.mean(1, keepdims=True) + np.float32(_MEAN * config.initializer_range)
    parts = name.split(".")
    if parts[-2] == "down_proj" and parts[-1] == "weight":
        return np.float32(_FEED_FORWARD) * weight
    if "self_attn" not in parts or parts[-1] == "bias":
        return weight
    layer, kind = int(parts[2]), parts[4]
    block = name.removesuffix(f"{kind}.weight")
    if kind == "o_proj" and layer > 0:
        # What was read is written as it stands in the embedding, and so makes its token likelier.
        values = _induction_weight(config, f"{block}v_proj.weight", drawn).reshape(K, 1, D, C)
        groups = config.num_attention_heads // K
        return np.float32(_ATTENTION) * np.repeat(values, groups, axis=1).reshape(-1, C).T
    if kind == "o_proj":
        return np.float32(_ATTENTION) * weight
    weight = weight - weight.mean(1, keepdims=True)  # blind to the mean
    if layer == 0 and kind in ("q_proj", "k_proj"):
        frequencies = config.rope_theta ** (-np.arange(0, D, 2) / D)
        score = np.sqrt(frequencies) / np.sqrt(frequencies).sum() * _PEAK  # of each pair, one position back
        mean = _MEAN / math.sqrt(1 + _MEAN**2)  # of the numbers that the matrix reads, behind the norm
        size = np.sqrt(score * math.sqrt(D)) / (C * mean)
        turn = 0 * frequencies if kind == "q_proj" else frequencies
        rows = np.concatenate([size * np.cos(turn), size * np.sin(turn)]).astype(np.float32)
        # The first key head, or the query heads that read it, see the mean and little else.
        first = weight.reshape(K, -1, D, C)[0]
        first *= np.float32(_RANDOM)
        first += rows[:, None]
    elif layer == 1 and kind == "k_proj":
        first_block = block.replace(".1.", ".0.")
        queries = _by_key_head(config, _induction_weight(config, f"{block}q_proj.weight", drawn))[:, 0]
        values = _induction_weight(config, f"{first_block}v_proj.weight", drawn)[:D]
        written = drawn(f"{first_block}o_proj.weight")[:, :D] @ values  # of the token before, times it
        for head in range(max(1, K // 2)):
            keys = queries[head] @ written.T
            weight[head * D : (head + 1) * D] = keys * (np.linalg.norm(queries[head]) / np.linalg.norm(keys))
    return weight


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
