"""An indexer of two heads over "the cat sat down": scores, selection, loss and its gradient (sparse_indexer.md)."""

import torch

from tests.worked import agrees
from v2_handwritten.models.blocks.attention import softmax
from v2_handwritten.models.blocks.attention_mask import AttentionMask
from v2_handwritten.models.blocks.selected_attention import GivenMask, selected_attention, selection_mask
from v2_handwritten.models.blocks.sparse_indexer import index_scores, indexer_loss, select_keys

PAGE = "v2_handwritten/models/blocks/sparse_indexer.md"

QUERIES = torch.tensor([[1.0, 0], [1, 1], [2, -1], [2, 1]])[None, :, :, None]  # [B = 1, T = 4, H = 2, D = 1]
KEYS = torch.tensor([1.0, 2, -1, 1.5])[None, :, None]  # the, cat, sat, down: [1, 4, 1]
WEIGHTS = torch.tensor([[1.0, 1], [1, 1], [1, 3], [1, -1]])[None]
TARGET = torch.tensor([[[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.1, 0.8, 0.1, 0], [0.1, 0.6, 0.1, 0.2]]])
VALUES = torch.tensor([1.0, 2, 4, 8])[None, None, :, None]
MASK = AttentionMask(4, 4)


def test_scores_and_selection() -> None:
    products = QUERIES[0, 3] @ KEYS[0].T
    agrees(PAGE, "down looks at", torch.cat([products, torch.relu(products)]).T)
    scores = index_scores(QUERIES, KEYS, WEIGHTS)
    agrees(PAGE, "scores", scores[0].where(MASK.allowed()[0], torch.nan))
    selected = select_keys(scores, MASK.allowed(), 2)
    agrees(PAGE, "selected", selection_mask(selected, 4).allowed()[0].int())


def test_attention_to_the_selected_keys() -> None:
    selected = select_keys(index_scores(QUERIES, KEYS, WEIGHTS), MASK.allowed(), 2)
    q = torch.log(TARGET.clamp(min=1e-9))[
        :, None
    ]  # with one-hot keys, its scores are the logarithms of the target
    k = 2 * torch.eye(4)[None, None]  # √D = 2
    dense = softmax(q[0, 0]) @ VALUES[0, 0]
    sparse = selected_attention(q, k, VALUES, selected, MASK)
    agrees(PAGE, "attention reads", torch.cat([dense, sparse[0, 0]], 1))


def test_loss_and_gradient() -> None:
    """Of the last query alone."""
    scores = index_scores(QUERIES, KEYS, WEIGHTS)[:, 3:].requires_grad_()
    mask, target = GivenMask(torch.ones(1, 1, 4, dtype=torch.bool)), TARGET[:, 3:]
    loss = indexer_loss(scores, target, None, mask)
    loss.backward()
    assert scores.grad is not None
    weights = softmax(scores.detach())
    agrees(PAGE, "warm-up", torch.cat([target[0], weights[0], scores.grad[0]]).T)
    selected = torch.tensor([[[1, 3]]])
    sparse = indexer_loss(scores, target, selected, mask)
    agrees(PAGE, "loss", [[loss.item()], [sparse.item()]])
