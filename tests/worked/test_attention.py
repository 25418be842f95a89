"""Two heads of causal attention over "the cat sat", as in v2_handwritten/models/blocks/attention.md."""

import math

import numpy as np
import torch

from tests.worked import agrees
from v2_handwritten.models.blocks.attention import causal_attention, join_heads, softmax, split_heads
from v2_handwritten.models.blocks.attention_mask import AttentionMask
from v2_handwritten.models.blocks.cross_entropy import soft_capped

PAGE = "v2_handwritten/models/blocks/attention.md"

X = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]])  # the, cat, sat: [T = 3, C = 4]
W_Q = torch.tensor([[0.0, 0, 2, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
W_K = torch.tensor([[0.0, 2, 0, 0], [2, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]])
W_V = torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0]])
W_O = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 1]])


def test_queries_keys_and_values() -> None:
    agrees(PAGE, "q", X @ W_Q.T)
    agrees(PAGE, "k", X @ W_K.T)
    agrees(PAGE, "v", X @ W_V.T)


def test_scores_weights_and_output() -> None:
    q, k, v = (split_heads((X @ W.T)[None], num_heads=2) for W in (W_Q, W_K, W_V))  # [1, H, T, D]
    scores = q @ k.transpose(-1, -2) / math.sqrt(2)
    visible = torch.ones(3, 3).tril().bool()
    agrees(PAGE, "scores, head 1", scores[0, 0].where(visible, torch.nan))
    agrees(PAGE, "scores, head 2", scores[0, 1].where(visible, torch.nan))
    weights = softmax(scores.masked_fill(~visible, -1e30))
    agrees(PAGE, "weights, head 1", weights[0, 0])
    agrees(PAGE, "weights, head 2", weights[0, 1])
    joined = join_heads(causal_attention(q, k, v, AttentionMask(3, 3)))[0]
    np.testing.assert_allclose(joined, join_heads(weights @ v)[0], atol=1e-6)
    agrees(PAGE, "heads", joined)
    agrees(PAGE, "output", joined @ W_O.T)


def test_soft_capped_scores_and_weights() -> None:
    scores = torch.tensor([0.0, 2 * math.sqrt(2), 10, 100])
    rows = []
    for cap in (2.0, 50.0):
        rows += [soft_capped(scores, cap), 1 - torch.tanh(scores / cap) ** 2]
    agrees(PAGE, "capped", torch.stack(rows))
    of_sat = scores[[0, 1, 0]]
    agrees(PAGE, "weights of sat", torch.stack([softmax(of_sat), softmax(soft_capped(of_sat, 2.0))]))
