"""Latent attention of "the cat sat" in both of its forms, and its cache beside that of other kinds (latent_attention.md)."""

import math

import torch
from torch import Tensor

from shared_data.model_files.config import ModelConfig
from tests.worked import agrees
from v2_handwritten.inference.kv_cache import bytes_per_token
from v2_handwritten.models.blocks.attention import attention_weights, causal_attention
from v2_handwritten.models.blocks.latent_attention import absorb, expand, up_project

PAGE = "v2_handwritten/models/blocks/latent_attention.md"

LATENT = torch.tensor([[1.0, 0], [0, 2], [1, 1]])[None, None]  # the, cat, sat: [B = 1, 1, S = 3, R = 2]
KEY_UP = torch.tensor([[[1.0, 1], [0, 1]], [[1, 0], [1, -1]]])  # [H = 2, N = 2, R = 2]
VALUE_UP = torch.tensor([[[1.0, 2]], [[1, -1]]])  # [H = 2, V = 1, R = 2]
QUERY = torch.tensor([[[1.0, 1]], [[2, 0]]])[None]  # of sat: [B = 1, H = 2, T = 1, N = 2]
# The rotated parts are (1, 0) before the rotation, of every token and head; one radian a position.
KEY_ROTATED = torch.tensor([[math.cos(p), math.sin(p)] for p in range(3)])[None, None]
QUERY_ROTATED = KEY_ROTATED[:, :, 2:].expand(1, 2, 1, 2)


def columns(x: Tensor) -> Tensor:
    """[1, H, S, X] as a row for each token, head 1 on the left."""
    return x[0].transpose(0, 1).flatten(1)


def test_expanded() -> None:
    up = torch.cat([KEY_UP, VALUE_UP], 1)
    q, k, v = expand(QUERY, QUERY_ROTATED, LATENT @ up.mT, KEY_ROTATED)
    agrees(PAGE, "keys and values", torch.cat([columns(k[..., :2]), k[0, 0, :, 2:], columns(v)], 1))
    agrees(PAGE, "scores", columns((q @ k.mT / 2).mT))
    weights = attention_weights(q, k)
    agrees(PAGE, "weights", columns(weights.flatten(1, 2).mT))
    agrees(PAGE, "output", causal_attention(q, k, v).view(2, 1))


def test_absorbed() -> None:
    q, k, v = absorb(QUERY, QUERY_ROTATED, LATENT, KEY_ROTATED, KEY_UP)
    moved = QUERY @ KEY_UP
    weights = attention_weights(q, k).flatten(1, 2)
    read = weights @ LATENT
    agrees(PAGE, "absorbed", torch.cat([moved[0, :, 0], read[0, :, 0]], 1))
    agrees(PAGE, "weights", columns(weights.mT))
    output = up_project(causal_attention(q, k, v), VALUE_UP)
    agrees(PAGE, "output", output.view(2, 1))


def cache(layers: int, heads: int, kv_heads: int) -> int:
    """Bytes a token in 16 bits, with heads of 128; no key-value heads: DeepSeek-V3's latents."""
    sizes = {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": heads * 128}
    if kv_heads:
        return bytes_per_token(ModelConfig(num_key_value_heads=kv_heads, **sizes), 2)
    latent = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
    return bytes_per_token(ModelConfig(model_type="deepseek_v3", **latent, **sizes), 2)


def test_memory_of_known_models() -> None:
    rows = []
    for layers, heads in ((61, 128), (80, 64), (32, 32)):  # DeepSeek-V3, Llama 3 70B and 8B
        found = [cache(layers, heads, kv_heads) for kv_heads in (heads, 8, 1, 0)]
        rows.append([layers, heads, *found, found[0] / found[-1]])
    agrees(PAGE, "bytes a token", rows, digits=1)
