"""FlashAttention in Triton equals the formula: without a GPU through Triton's interpreter, with one as it is compiled for it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shared_data.attention.patterns import AttentionPattern
from tests.parity.arrays import array
from tests.parity.recorder import ParityRecorder
from v2_handwritten.kernels import kernel
from v2_handwritten.kernels.triton import triton_attention
from v2_handwritten.kernels.triton.visible_keys import visible_keys
from v2_handwritten.models.blocks.attention import causal_attention
from v2_handwritten.models.blocks.attention_mask import AttentionMask
from v2_handwritten.models.packing import Packing

pytest.importorskip("triton", reason="Triton has wheels for Linux only")

from v2_handwritten.kernels.triton import flash_attention as triton_kernel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK = 16  # the smallest one: three blocks of queries
T = 40
WINDOW = AttentionPattern("sliding_attention", 7)
WINDOW_AND_FIRST = AttentionPattern("sliding_attention", 7, num_sink_tokens=3)
CHUNKS = AttentionPattern("chunked_attention", 12, num_sink_tokens=2)


def documents() -> dict[str, Any]:
    """One document ends inside a block, one at its edge; one is a single token."""
    ids = torch.tensor([[0] * 13 + [1] * 19 + [2] * 8, [0] * 16 + [1] + [2] * 23])
    return {"packing": Packing(ids.to(DEVICE))}


def padding() -> dict[str, Any]:
    """On the left, more than a block; on the right; and between a prompt and what follows it."""
    is_real = torch.ones(2, T, dtype=torch.int64)
    is_real[0, :18], is_real[1, 20:25], is_real[1, 38:] = 0, 0, 0
    return {"attention_mask": is_real.to(DEVICE)}


# Name → number of heads, of key-value heads, of queries; head sizes of keys and values; mask; pattern; sinks; cap.
CASES: dict[str, dict[str, Any]] = {
    "causal": {"B": 2, "K": 2},
    "grouped heads": {"H": 4, "K": 2},
    "head sizes 20 and 12": {"D": 20, "Dv": 12},
    "after a cache": {"T": 5},
    "window": {"pattern": WINDOW},
    "window and first tokens": {"pattern": WINDOW_AND_FIRST},
    "window after a cache": {"T": 18, "pattern": WINDOW_AND_FIRST},
    "chunks and first tokens": {"pattern": CHUNKS},
    "documents": {"B": 2, "mask": documents},
    "documents, window and first tokens": {"B": 2, "mask": documents, "pattern": WINDOW_AND_FIRST},
    "padding": {"B": 2, "mask": padding},
    "padding, window and first tokens": {"B": 2, "mask": padding, "pattern": WINDOW_AND_FIRST},
    "long": {"H": 1, "T": 100, "S": 150, "pattern": AttentionPattern("sliding_attention", 60, 4)},
    "sinks and soft cap": {"pattern": WINDOW, "sinks": True, "softcap": 2.0},
}


def mask_of(case: dict[str, Any]) -> AttentionMask:
    options = case["mask"]() if "mask" in case else {}
    return AttentionMask(case.get("T", T), case.get("S", T), DEVICE, **options).of(
        case.get("pattern", AttentionPattern())
    )


def inputs_of(case: dict[str, Any], dtype: torch.dtype) -> list[Tensor]:
    """q, k and v, strided as a projection leaves them, and sinks."""
    B, H, K, D = (case.get(name, default) for name, default in (("B", 1), ("H", 2), ("K", 1), ("D", 16)))
    S = case.get("S", T)
    shapes = (B, case.get("T", T), H, D), (B, S, K, D), (B, S, K, case.get("Dv", D))
    inputs = [torch.from_numpy(array(i, *shape)).transpose(1, 2) for i, shape in enumerate(shapes)]
    if case.get("sinks"):
        inputs.append(torch.from_numpy(array(5, H)))
    return [x.to(DEVICE, dtype).requires_grad_() for x in inputs]


def output_and_gradients(
    function: Any, case: dict[str, Any], inputs: list[Tensor], mask: AttentionMask
) -> list[Tensor]:
    q, k, v, *sinks = inputs
    output = function(q, k, v, mask, sinks=sinks[0] if sinks else None, softcap=case.get("softcap"))
    has_keys = mask.allowed().any(-1)[:, None, :, None]  # a query without any has no right answer
    direction = torch.from_numpy(array(9, *output.shape)).to(output) * has_keys
    return [output.detach() * has_keys, *torch.autograd.grad(output, inputs, direction)]


def compare(parity: ParityRecorder, name: str, dtype: torch.dtype, tolerance: float) -> None:
    """Against the formula in float64, of the same numbers."""
    case = CASES[name]
    inputs, mask = inputs_of(case, dtype), mask_of(case)
    assert triton_kernel.covers(inputs[0], inputs[2], mask)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    found = output_and_gradients(triton_kernel.flash_attention, case, inputs, mask)
    expected = output_and_gradients(causal_attention, case, wide, mask)
    quantities = ("output", "grad q", "grad k", "grad v", "grad sinks")
    for quantity, actual, truth in zip(quantities, found, expected, strict=False):
        assert actual.dtype == dtype
        parity(
            component=f"attention in Triton, {name}, {str(dtype).removeprefix('torch.')}",
            quantity=quantity,
            levels="v2-v2",
            actual=actual.cpu(),
            expected=truth.cpu(),
            tolerance=tolerance,
        )


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernel, "block_size", lambda q, v: BLOCK)


def test_what_a_window_over_two_documents_shows_is_two_intervals_a_query() -> None:
    """Documents of 5 and 3 tokens; each token sees two, and the first one of its document. Blocks of 2 queries and 2 keys."""
    mask = AttentionMask(8, 8, packing=Packing(torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1]])))
    plan = visible_keys(mask.of(AttentionPattern("sliding_attention", 2, num_sink_tokens=1)), block=2)
    near_start, far_start, far_end = plan.intervals[0].tolist()
    assert near_start == [0, 0, 1, 2, 3, 5, 5, 6]
    assert far_start == [8, 8, 0, 0, 0, 8, 8, 5]  # empty intervals begin at the end and end at 0
    assert far_end == [0, 0, 1, 1, 1, 0, 0, 6]
    assert [row[1 : 1 + row[0]] for row in plan.key_blocks[0].tolist()] == [[0], [0, 1], [0, 1, 2], [2, 3]]
    assert [row[1 : 1 + row[0]] for row in plan.query_blocks[0].tolist()] == [[0, 1, 2], [1, 2], [2, 3], [3]]


@pytest.mark.parametrize("name", CASES)
def test_intervals_and_blocks_hold_what_the_mask_allows(name: str) -> None:
    mask = mask_of(CASES[name])
    plan, allowed = visible_keys(mask, BLOCK), mask.allowed()
    near_start, far_start, far_end = plan.intervals.unsqueeze(-1).unbind(1)
    s = torch.arange(mask.S, device=DEVICE)
    t = torch.arange(mask.S - mask.T, mask.S, device=DEVICE)[:, None]
    seen = (near_start <= s) & (s <= t) | (far_start <= s) & (s < far_end)
    if plan.is_real is not None:
        seen &= plan.is_real[:, None]
    assert torch.equal(seen, allowed)
    held = listed(plan.key_blocks)
    assert torch.equal(held, listed(plan.query_blocks).transpose(1, 2))
    rest = torch.nn.functional.pad(allowed, (0, -mask.S % BLOCK, 0, -mask.T % BLOCK))
    needed = rest.unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK)).any(4).any(2)
    assert (held >= needed).all()
    if CASES[name].get("mask") is not padding:  # there, a block of padding queries may be one too many
        assert torch.equal(held, needed)


def listed(lists: Tensor) -> Tensor:
    """Which blocks the lists name."""
    held = torch.zeros(lists[..., 1:].shape, dtype=torch.bool, device=lists.device)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in lists.shape[:2])).tolist():
        count, *numbers = lists[tuple(place)].tolist()
        held[tuple(place)][numbers[:count]] = True
    return held


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("name", [name for name in CASES if name != "long"])
def test_output_and_all_gradients_equal_the_formula(parity: ParityRecorder, name: str) -> None:
    compare(parity, name, torch.float32, 2e-6)


@pytest.fixture
def _products_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter multiplies the bits of bfloat16 as integers (its issue 11584); convert them first."""
    from triton import language
    from triton.runtime.interpreter import InterpreterBuilder

    product = InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        if a.dtype.scalar == language.bfloat16:
            a, b = (self.create_fp_to_fp(x, language.float32, None) for x in (a, b))
        return product(self, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@pytest.mark.usefixtures("_small_blocks", "_products_of_bfloat16")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_in_16_bits_only_inputs_weights_and_results_are_rounded(
    parity: ParityRecorder, dtype: torch.dtype
) -> None:
    compare(parity, "sinks and soft cap", dtype, 3 * torch.finfo(dtype).eps)


def test_blocks_of_the_default_size_equal_the_formula(parity: ParityRecorder) -> None:
    """One head, so that 64 queries and 64 keys a block take no longer."""
    assert triton_kernel.block_size(*inputs_of(CASES["long"], torch.float32)[::2]) == 64
    compare(parity, "long", torch.float32, 2e-6)


def test_a_query_without_any_key_gets_zeros_and_no_gradient() -> None:
    mask = AttentionMask(T, T, DEVICE, attention_mask=(torch.arange(T) >= 30).expand(1, T).to(DEVICE))
    q, k, v = inputs_of({"H": 1}, torch.float32)
    output = triton_kernel.flash_attention(q, k, v, mask)
    assert (output[:, :, :30] == 0).all()
    found = torch.autograd.grad(output.sum(), (q, k, v))
    assert all(x.isfinite().all() for x in found)
    assert all((x[:, :, :30] == 0).all() for x in found)


def test_it_is_the_fused_kernel_of_a_gpu_for_all_that_it_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, tensors that say they were on one."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True), raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    called = []

    def flash_attention(*arguments: Any) -> Tensor:
        called.append(arguments)
        return arguments[0]

    monkeypatch.setattr(triton_kernel, "flash_attention", flash_attention)
    fused, (q, k, v) = kernel("fused", causal_attention), inputs_of({"B": 2}, torch.float32)
    mask = AttentionMask(T, T, DEVICE)
    fused(q, k, v, mask)
    assert len(called) == 1
    branches = Packing(torch.zeros(2, T, dtype=torch.int64), (torch.arange(T) // 20).expand(2, T))
    for not_covered in (
        (q.double(), v.double(), mask),
        (q, v, mask.of(AttentionPattern("strided_attention", 4))),
        (q, v, AttentionMask(T, T, packing=branches)),
        (q, torch.zeros(2, 1, T, 320), mask),
    ):
        assert triton_attention(*not_covered) is None
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert triton_attention(q, v, mask) is None
    monkeypatch.setattr("v2_handwritten.kernels.triton.HAS_TRITON", False)
    assert triton_attention(q, v, mask) is None


def test_the_kernels_compile_for_gpus_and_fit_their_fast_memory(tmp_path: Path) -> None:
    """By Triton's compiler, which needs no GPU; in a process of its own, since this one may interpret."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.v2.compile_triton"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sizes = [int(line.split()[-1]) for line in done.stdout.splitlines()]
    assert len(sizes) == 6
    assert (
        max(sizes) <= 99 * 1024
    )  # what a program may have on GPUs for consumers (compute capability 8.6, 8.9, 12.0)
