"""A cache of keys and values: its size for known models, and a step that gives the last row of the whole pass (kv_cache.md)."""

import torch

from shared_data.model_files.config import ModelConfig
from tests.worked import agrees
from tests.worked.test_attention import W_K, W_O, W_Q, W_V, X
from v2_handwritten.inference.kv_cache import KVCache, bytes_per_token
from v2_handwritten.models.blocks.attention import causal_attention, join_heads, split_heads
from v2_handwritten.models.blocks.attention_mask import AttentionMask

PAGE = "v2_handwritten/inference/kv_cache.md"

# layers, query heads, key-value heads, head size, positions
MODELS = {
    "GPT-2": (12, 12, 12, 64, 1024),
    "Llama 2 7B": (32, 32, 32, 128, 4096),
    "Llama 3 8B": (32, 32, 8, 128, 8192),
    "Llama 3 8B, if MQA": (32, 32, 1, 128, 8192),
}


def config(layers: int, heads: int, kv_heads: int, head_size: int, positions: int) -> ModelConfig:
    return ModelConfig(
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_size,
        hidden_size=heads * head_size,
        max_position_embeddings=positions,
    )


def test_memory_of_known_models() -> None:
    rows = []
    for shape in MODELS.values():
        per_token = bytes_per_token(config(*shape), bytes_per_number=2)
        rows.append([*shape, per_token, per_token * shape[-1] / 2**20])
        # The "meta" device has shapes, but no memory.
        cache = KVCache(
            config(*shape), batch_size=1, max_length=shape[-1], dtype=torch.bfloat16, device="meta"
        )
        assert cache.states[0].nbytes == per_token * shape[-1]
    agrees(PAGE, "model", rows)


def test_a_step_with_the_cache_gives_the_row_of_the_whole_pass() -> None:
    """ "the cat" first, then "sat" alone, over the keys and values that are kept: attention.md has the whole pass."""
    cache, outputs = KVCache(config(1, 2, 2, 2, 3), batch_size=1, max_length=3), []
    for x in (X[:2], X[2:]):
        q, k, v = (split_heads((x @ W.T)[None], num_heads=2) for W in (W_Q, W_K, W_V))
        keys, values = cache.update(0, k, v)
        mask = AttentionMask(len(x), keys.shape[2])
        outputs.append(join_heads(causal_attention(q, keys, values, mask))[0] @ W_O.T)
    assert cache.length == 3
    agrees(PAGE, "output", torch.cat(outputs))
    agrees("v2_handwritten/models/blocks/attention.md", "output", torch.cat(outputs))
