"""Initial weights, the same at all three levels: names and shapes from the library's model, numbers from NumPy.

The library initialises its models itself, by the same rule; but its numbers come from torch's generator, in the order in
which modules are built. To start all levels from the same weights, they are drawn as levels 2 and 3 draw them.

    python -c "from v1_quick.models.initialization import *; from transformers import GPT2Config; print(len(parameter_shapes(GPT2Config())))"
"""

import math
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

# Where a circuit is laid out (`induction_heads`):
_MEAN = 0.7  # mean of a token's numbers, in standard deviations
_PEAK = 8.0  # score of the token before in the previous-token head
_RANDOM = 0.3  # what is left of that head's random matrices
_ATTENTION, _FEED_FORWARD = 0.5, 0.1  # what is left of the matrices that write into the residual stream


def parameter_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of a checkpoint: its Hugging Face name and its shape. A tied `lm_head.weight` is not listed."""
    with torch.device("meta"):  # shapes without memory
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def initial_weights(
    config: PreTrainedConfig, seed: int, equal_query_key: bool = False, induction_heads: bool = False
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (Hugging Face name, float32 array) of every parameter, one at a time.

    equal_query_key: the matrix of the keys starts as that of the queries, as in Trockman & Kolter 2023 (transformer.md). With fewer
    key heads than query heads, each key head starts as the first query head that reads it.
    induction_heads: the first two layers start as the circuit of Olsson et al. 2022 that finds what followed a token earlier, all
    layers but the first copy what they attend to, and what is random writes little (transformer.md). For Llama with two layers or
    more.
    """
    shapes = parameter_shapes(config)

    def drawn(name: str) -> np.ndarray:
        return _random_weight(config, seed, name, shapes, equal_query_key)

    for name in shapes:
        yield name, _induction_weight(config, name, drawn) if induction_heads else drawn(name)


def _random_weight(
    config: PreTrainedConfig, seed: int, name: str, shapes: dict[str, tuple[int, ...]], equal_query_key: bool
) -> np.ndarray:
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


def _by_key_head(config: PreTrainedConfig, queries: np.ndarray) -> np.ndarray:
    """Rows for query heads [H D, C] as [K, H / K, D, C]: which heads read the same key head."""
    groups = config.num_attention_heads // config.num_key_value_heads
    return queries.reshape(config.num_key_value_heads, groups, config.head_dim, -1)


def _induction_weight(config: PreTrainedConfig, name: str, drawn: Callable[[str], np.ndarray]) -> np.ndarray:
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
        frequencies = config.rope_parameters["rope_theta"] ** (-np.arange(0, D, 2) / D)
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


def _normal(seed: int, name: str, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Normal numbers with this standard deviation, from the stream of the parameter of this name."""
    # crc32 and not hash(): Python salts the hash of a string anew in every process.
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    weight = generator.standard_normal(shape, dtype=np.float32)
    weight *= np.float32(scale)
    return weight
