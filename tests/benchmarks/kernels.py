"""Each kernel of level 2, forward and backward: the plain formula, the fused version and torch's own, in one process, taking turns.

The shapes are those of a training step of the tiny model (16 rows of 256 tokens).

    OMP_NUM_THREADS=2 python -m tests.benchmarks.kernels
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.training_step import packed_batch
from v2_handwritten.kernels import KERNELS, kernel
from v2_handwritten.models.blocks.attention import causal_attention
from v2_handwritten.models.blocks.attention_mask import AttentionMask
from v2_handwritten.models.blocks.cross_entropy import linear_cross_entropy
from v2_handwritten.models.blocks.embeddings import embed
from v2_handwritten.models.blocks.feed_forward import gelu_new, swiglu
from v2_handwritten.models.blocks.linear import Linear, merged_linear
from v2_handwritten.models.blocks.normalization import layer_norm, rms_norm
from v2_handwritten.models.blocks.rope import apply_rotary
from v2_handwritten.models.log_probs import linear_log_probs
from v2_handwritten.models.packing import Packing

B, T, C, H, K, D, F, V = 16, 256, 128, 4, 2, 32, 352, 1024
BATCH = packed_batch(B, T, V)
IDS = BATCH["input_ids"]
ANGLES = torch.rand(1, T, D // 2)
LAYERS = [Linear(C, H * D, bias=False), Linear(C, K * D, bias=False), Linear(C, K * D, bias=False)]
QKV = [(B, H, T, D), (B, K, T, D), (B, K, T, D)]
Case = tuple[Callable[..., Any], Callable[..., Tensor], list[tuple[int, ...]]]
# Name → (plain function, how it is called, shapes of its inputs).
CASES: dict[str, Case] = {
    "causal_attention": (causal_attention, lambda f, q, k, v: f(q, k, v), QKV),
    "causal_attention, packed": (
        causal_attention,
        lambda f, q, k, v: f(q, k, v, AttentionMask(T, T, packing=Packing(BATCH["document_ids"]))),
        QKV,
    ),
    "linear_cross_entropy": (
        linear_cross_entropy,
        lambda f, h, w: f(h, w, IDS.flatten()),
        [(B * T, C), (V, C)],
    ),
    "linear_log_probs": (linear_log_probs, lambda f, h, w: f(h, w, IDS.flatten()), [(B * T, C), (V, C)]),
    "rms_norm": (rms_norm, lambda f, x, w: f(x, w, 1e-5), [(B, T, C), (C,)]),
    "layer_norm": (layer_norm, lambda f, x, w, b: f(x, w, b, 1e-5), [(B, T, C), (C,), (C,)]),
    "swiglu": (swiglu, lambda f, x: f(x), [(B, T, 2 * F)]),
    "gelu_new": (gelu_new, lambda f, x: f(x), [(B, T, 4 * C)]),
    "apply_rotary": (apply_rotary, lambda f, x: f(x, ANGLES.cos(), ANGLES.sin()), QKV[:1]),
    "merged_linear": (merged_linear, lambda f, x: f(x, LAYERS), [(B, T, C)]),
    "embed": (embed, lambda f, w: f(w, IDS), [(V, C)]),
}


def seconds(case: Case, choice: str, inputs: list[Tensor]) -> float:
    """One forward and backward pass."""
    plain, call, _ = case
    started = time.perf_counter()
    output = call(kernel(choice, plain), *inputs)
    output.backward(torch.ones_like(output))
    return time.perf_counter() - started


def run(repeats: int = 9) -> Iterator[dict[str, Any]]:
    """Rows for the table of `python -m tests.benchmarks`."""
    for name, case in CASES.items():
        inputs = [torch.randn(shape, requires_grad=True) for shape in case[2]]
        times: dict[str, list[float]] = {choice: [] for choice in KERNELS}
        for _ in range(repeats + 1):  # the first round warms up
            for choice in KERNELS:
                times[choice].append(seconds(case, choice, inputs))
        medians = {choice: statistics.median(found[1:]) for choice, found in times.items()}
        for choice in ("fused", "library"):
            yield {
                "what": f"{name}, forward and backward: {choice} against plain",
                "ratio": medians["plain"] / medians[choice],
                **{f"{kind} ms": 1000 * median for kind, median in medians.items()},
            }


if __name__ == "__main__":
    for row in run():
        print(f"{row['ratio']:6.2f}  {row['what']}  ({row['plain ms']:.2f} ms plain)")
