"""Six keys in two tiles: the online softmax and its derivative, as in v2_handwritten/kernels/fused/flash_attention.md."""

import pytest
import torch

from tests.worked import agrees
from v2_handwritten.kernels.fused import attention_tiles
from v2_handwritten.kernels.fused.flash_attention import flash_attention
from v2_handwritten.models.blocks.attention_mask import AttentionMask

PAGE = "v2_handwritten/kernels/fused/flash_attention.md"

# One query, 1, and one channel, so that the scores are the keys. The second tile has the larger ones.
S = torch.tensor([1.0, 2, 0, 2, 4, 3])
V = torch.tensor([2.0, 1, 4, 0, 1, 3])
TILES = (slice(0, 3), slice(3, 6))
D_OUTPUT, SINK = 1.0, 3.0


def online(tiles: tuple[slice, ...], m: float = -torch.inf, z: float = 0.0) -> list[list[float]]:
    """m, z, o and o/z after each tile."""
    rows, o = [], torch.tensor(0.0)
    largest, total = torch.tensor(m), torch.tensor(z)
    for tile in tiles:
        new = torch.maximum(largest, S[tile].max())
        shrink, weights = (largest - new).exp(), (S[tile] - new).exp()
        total, o, largest = total * shrink + weights.sum(), o * shrink + weights @ V[tile], new
        rows.append([float(x) for x in (shrink, largest, total, o, o / total)])
    return rows


def kernel_output(sinks: torch.Tensor | None = None) -> torch.Tensor:
    """The kernel's own, one query behind a cache."""
    one = torch.ones(1, 1, 1, 1)
    return flash_attention(one, S.view(1, 1, 6, 1), V.view(1, 1, 6, 1), AttentionMask(1, 6), sinks).squeeze()


@pytest.fixture(autouse=True)
def _tiles_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_tiles, "KEY_TILE", 3)


def test_a_softmax_in_two_tiles_in_either_order() -> None:
    forwards = online(TILES)
    agrees(PAGE, "tile 1, then 2", forwards)
    agrees(PAGE, "tile 2, then 1", online(TILES[::-1]))
    torch.testing.assert_close(kernel_output(), torch.tensor(forwards[-1][-1]))
    torch.testing.assert_close(kernel_output(), S.softmax(0) @ V)


def test_two_softmaxes_merge_by_their_log_sums() -> None:
    sums = torch.stack([S[tile].logsumexp(0) for tile in TILES])
    outputs = torch.stack([S[tile].softmax(0) @ V[tile] for tile in TILES])
    both = sums.logsumexp(0)
    shares = (sums - both).exp()
    agrees(PAGE, "merged", torch.stack([sums, shares, outputs], 1))
    torch.testing.assert_close(kernel_output(), (shares * outputs).sum())


def test_a_sink_is_where_the_sums_begin() -> None:
    rows = online(TILES, m=SINK, z=1.0)
    agrees(PAGE, "from a sink of 3", rows)
    torch.testing.assert_close(kernel_output(torch.tensor([SINK])), torch.tensor(rows[-1][-1]))


def test_the_derivative_from_the_log_sum() -> None:
    scores, values = S.clone().requires_grad_(), V.clone().requires_grad_()
    output = scores.softmax(0) @ values
    (D_OUTPUT * output).backward()
    P = (S - S.logsumexp(0)).exp()
    delta = D_OUTPUT * float(output.detach())
    d_scores = P * (D_OUTPUT * V - delta)
    agrees(PAGE, "key", torch.stack([S, P, D_OUTPUT * V - delta, d_scores, P * D_OUTPUT], 1))
    torch.testing.assert_close(scores.grad, d_scores)
    torch.testing.assert_close(values.grad, P * D_OUTPUT)
