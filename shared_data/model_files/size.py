"""How big a model is and how much work a token costs, before anything is built.

Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, appendix B. Of a mixture of experts, a token uses only the experts that it
is sent to: the active parameters.

    uv run python -c "from shared_data.model_files.size import *; from shared_data.model_files.config import ModelConfig; print(count_parameters(ModelConfig(vocab_size=1024)))"
"""

import math
import os
from pathlib import Path

from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.initialization import is_buffer, parameter_shapes


def count_parameters(config: ModelConfig) -> int:
    """Numbers that training adjusts; a tied output matrix counts once."""
    return sum(math.prod(shape) for name, shape in parameter_shapes(config).items() if not is_buffer(name))


def count_active_parameters(config: ModelConfig) -> int:
    """Those that one token uses: of each layer's experts, only as many as it is sent to."""
    return sum(
        math.prod(shape) * config.num_experts_per_tok // shape[0] if ".experts." in name else math.prod(shape)
        for name, shape in parameter_shapes(config).items()
        if not is_buffer(name)
    )


def check_memory(config: ModelConfig, source: Path) -> None:
    """Raise `UserError` for a model whose weights alone, of two bytes or (quantized) half a byte each, are more than this machine's memory."""
    if not hasattr(os, "sysconf"):  # Windows
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = count_parameters(config) * (2 if config.quantization is None else 0.5)
    if needed > memory:
        raise UserError(
            f"{source} describes a model that needs {needed / 1e9:,.0f} GB of memory, and this machine has {memory / 1e9:,.0f} GB; "
            "choose a smaller model, or correct the file"
        )


def flops_per_token(config: ModelConfig, sequence_length: int) -> int:
    """Floating-point operations of one training token, forward and backward: 6 N + 12 · layers · H · D · T.

    N counts the active weights of matrix products (with the output matrix, without look-ups, norms and biases): each is used in
    one multiplication and one addition forward, and in two of each backward. The second term is the attention's two
    products of T × T; as is usual, the half that the causal mask discards, and what a sparse pattern does, is counted.
    """
    N = config.vocab_size * config.hidden_size
    for name, shape in parameter_shapes(config).items():
        if len(shape) < 2 or name.endswith(
            ("lm_head.weight", "embed_tokens.weight", "wte.weight", "wpe.weight", "bias")
        ):
            continue
        share = config.num_experts_per_tok if ".experts." in name else 1
        N += math.prod(shape) * share // (shape[0] if ".experts." in name else 1)
    query_and_value = 2 * config.head_dim
    if config.kv_lora_rank:
        query_and_value = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    attention = config.num_hidden_layers * config.num_attention_heads * query_and_value * sequence_length
    return 6 * N + 6 * attention


def cache_shapes(config: ModelConfig) -> list[tuple[int, int, int]]:
    """What a layer keeps of each token for the tokens after it: how many vectors per head, of how many heads, of which size.

    Keys and values; of latent attention the latent and the rotated key, which all heads share; of an indexer its key.
    """
    shapes = [(2, config.num_key_value_heads, config.head_dim)]
    if config.kv_lora_rank:
        shapes = [(1, 1, config.kv_lora_rank), (1, 1, config.qk_rope_head_dim)]
    if config.index_head_dim:
        shapes.append((1, 1, config.index_head_dim))
    return shapes
