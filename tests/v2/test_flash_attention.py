"""The flash kernel: online softmax over tiles in any order, linear memory, and nothing computed where a mask hides it."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from shared_data.attention.patterns import AttentionPattern
from tests.parity.arrays import array
from tests.peak_memory import peak_memory
from v2_handwritten.kernels import kernel
from v2_handwritten.kernels.fused import attention, attention_tiles, flash_attention
from v2_handwritten.models.blocks.attention import causal_attention
from v2_handwritten.models.blocks.attention_mask import AttentionMask
from v2_handwritten.models.packing import Packing

T = 150
PLACES = torch.arange(T).expand(2, T)
MASKS: dict[str, dict[str, Any]] = {
    "causal": {},
    "documents": {"packing": Packing(PLACES // 70)},
    "branches": {"packing": Packing(PLACES // 70, PLACES % 70 // 25)},
    "padding": {"attention_mask": torch.tensor([[150], [140]]) > PLACES},
}
WINDOW, STRIDES = AttentionPattern("sliding_attention", 20, 2), AttentionPattern("strided_attention", 12, 2)


def qkv(dtype: torch.dtype = torch.float64, T: int = T, H: int = 4, K: int = 2) -> list[Tensor]:
    shapes = ((2, H, T, 8), (2, K, T, 8), (2, K, T, 8))
    return [torch.from_numpy(array(i, *s)).to(dtype).requires_grad_() for i, s in enumerate(shapes)]


def gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    direction = torch.from_numpy(array(9, *output.shape)).to(output.dtype)
    return output.detach(), *torch.autograd.grad(output, inputs, direction)


@pytest.fixture
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything goes through the flash kernel, in several tiles."""
    monkeypatch.setattr(attention, "_TILE_WEIGHTS", 0)
    monkeypatch.setattr(attention_tiles, "QUERY_TILE", 32)
    monkeypatch.setattr(attention_tiles, "KEY_TILE", 40)


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("wanted", [False, True], ids=["all", "some queries"])
@pytest.mark.parametrize("name", MASKS)
def test_in_small_tiles_it_equals_the_formula_without_a_pattern(
    name: str, wanted: bool, dtype: torch.dtype
) -> None:
    mask, inputs = AttentionMask(T, T, **MASKS[name]), qkv(dtype)
    keep = PLACES % 3 == 0 if wanted else torch.ones_like(PLACES, dtype=torch.bool)
    results = [
        gradients(kernel(kernels, causal_attention)(*inputs, mask.only(keep)).transpose(1, 2)[keep], inputs)
        for kernels in ("fused", "plain")
    ]
    assert "pieces" in mask.plans
    for actual, expected in zip(*results, strict=True):
        error = (actual - expected).abs().max() / expected.abs().max().clamp(min=1)
        assert error < (2e-6 if dtype == torch.float32 else 4e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_16_bits_are_close_to_32(dtype: torch.dtype) -> None:
    """Sums are in float32, so that only the inputs and the results are rounded."""
    mask = AttentionMask(T, T).of(STRIDES)
    inputs, sinks = qkv(dtype), torch.from_numpy(array(5, 4)).to(dtype).requires_grad_()
    arguments = {"softcap": 3.0}
    found = kernel("fused", causal_attention)(*inputs, mask, sinks=sinks, **arguments)
    assert found.dtype == dtype
    wide = [x.detach().float().requires_grad_() for x in (*inputs, sinks)]
    expected = causal_attention(*wide[:3], mask, sinks=wide[3], **arguments)
    for actual, truth in zip(gradients(found, [*inputs, sinks]), gradients(expected, wide), strict=True):
        size = truth.abs().max().clamp(min=1)
        assert (actual.float() - truth).abs().max() / size < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("pattern", [WINDOW, STRIDES], ids=["window", "strides"])
def test_the_tiles_may_come_in_any_order(pattern: AttentionPattern) -> None:
    """A query carries its largest score, its sum and its output from one of its tiles to the next, wherever that is."""
    inputs, results = qkv(), []
    for seed in (None, 0, 1):
        mask = AttentionMask(T, T).of(pattern)
        groups = [[tile] for group in attention_tiles.plan_pieces(mask) for tile in group]
        if seed is not None:
            random.Random(seed).shuffle(groups)
        mask.plans["pieces"] = groups
        results.append(gradients(flash_attention.flash_attention(*inputs, mask, softcap=2.0), inputs))
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=2e-14)


def test_huge_scores_neither_overflow_nor_vanish() -> None:
    """e¹⁰⁰⁰ is infinite, and the scores rise from one tile to the next by far more than float32 can hold."""
    q, k, v = qkv(torch.float32, T=64, H=1, K=1)
    scores = torch.linspace(0, 1e4, 64)
    k = scores.view(1, 1, 64, 1).expand(2, 1, 64, 8).contiguous().requires_grad_()
    q = torch.ones_like(q).requires_grad_()
    mask = AttentionMask(64, 64).of(AttentionPattern("strided_attention", 8))
    for actual in gradients(flash_attention.flash_attention(q, k, v, mask), [q, k, v]):
        assert actual.isfinite().all()
    found = flash_attention.flash_attention(q, k, v, mask)
    torch.testing.assert_close(found, v)  # each query reads the last key it sees, its own


def test_a_query_without_any_key_gets_zeros_and_no_gradient() -> None:
    mask = AttentionMask(T, T, attention_mask=PLACES >= 30).of(WINDOW)
    inputs = qkv()
    for sinks in (None, torch.zeros(4, dtype=torch.float64)):
        output = kernel("fused", causal_attention)(*inputs, mask, sinks=sinks)
        assert (output[:, :, :30] == 0).all()
        found = gradients(output, inputs)
        assert all(x.isfinite().all() for x in found)
        assert (found[1][:, :, :30] == 0).all()


def test_nothing_is_computed_outside_a_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a row of 4 documents, the window's scores: less than 1.6 times as many as there are visible pairs."""
    computed = []
    original = flash_attention._scores

    def counted(*arguments: Any) -> tuple[Tensor, Tensor | None]:
        scores, slope = original(*arguments)
        computed.append(scores.numel())
        return scores, slope

    monkeypatch.setattr(flash_attention, "_scores", counted)
    inputs = [torch.zeros(1, 1, 4096, 4) for _ in range(3)]
    mask = AttentionMask(4096, 4096, packing=Packing(torch.arange(4096)[None] // 1024))
    mask = mask.of(AttentionPattern("sliding_attention", 256))
    kernel("fused", causal_attention)(*inputs, mask)
    assert sum(computed) < 1.6 * int(mask.allowed().sum())


@pytest.mark.parametrize(
    "pattern",
    [
        AttentionPattern(),
        AttentionPattern("sliding_attention", 256, 4),
        AttentionPattern("strided_attention", 64),
    ],
    ids=["full", "window", "strides"],
)
def test_memory_grows_with_the_length_and_not_with_its_square(pattern: AttentionPattern) -> None:
    """Forward and backward, all that is allocated; of 4,096 tokens also far less than the weights alone would need."""

    def peak(T: int) -> int:
        q, k, v = (torch.randn(1, heads, T, 16, requires_grad=True) for heads in (2, 1, 1))
        mask = AttentionMask(T, T).of(pattern)
        return peak_memory(
            lambda: flash_attention.flash_attention(q, k, v, mask, softcap=5.0).sum().backward()
        )

    peak(256)  # edges that all lengths share
    short, long, weights = peak(2048), peak(4096), 2 * 4096**2 * 4
    assert long < 2.1 * short
    assert long < 0.2 * weights
