"""Initial weights, the same at all three levels: names and shapes from the library's model, numbers from NumPy.

The library initialises its models itself, by the same rule; but its numbers come from torch's generator, in the order in
which modules are built. To start all levels from the same weights, they are drawn as levels 2 and 3 draw them.

    python -c "from v1_quick.models.initialization import *; from transformers import GPT2Config; print(len(parameter_shapes(GPT2Config())))"
"""

import math
import zlib
from collections.abc import Iterator

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig


def parameter_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of a checkpoint: its Hugging Face name and its shape. A tied `lm_head.weight` is not listed."""
    with torch.device("meta"):  # shapes without memory
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def initial_weights(config: PreTrainedConfig, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (Hugging Face name, float32 array) of every parameter, one at a time."""
    for name, shape in parameter_shapes(config).items():
        if name.endswith("bias"):
            yield name, np.zeros(shape, np.float32)
        elif len(shape) == 1:  # the gain of a norm
            yield name, np.ones(shape, np.float32)
        else:
            residual = math.sqrt(2 * config.num_hidden_layers) if name.endswith("c_proj.weight") else 1.0
            yield name, _normal(seed, name, shape, config.initializer_range / residual)


def _normal(seed: int, name: str, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Normal numbers with this standard deviation, from the stream of the parameter of this name."""
    # crc32 and not hash(): Python salts the hash of a string anew in every process.
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    weight = generator.standard_normal(shape, dtype=np.float32)
    weight *= np.float32(scale)
    return weight
