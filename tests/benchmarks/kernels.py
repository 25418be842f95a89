"""Each kernel of levels 2 and 3, forward and backward: the plain formula, the fused version and torch's own, taking turns in one process.

The shapes are those of a training step of the tiny model (16 rows of 256 tokens).

    OMP_NUM_THREADS=2 python -m tests.benchmarks.kernels
"""

import statistics
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np
import torch

from tests.benchmarks.training_step import packed_batch

B, T, C, H, K, D, F, V = 16, 256, 128, 4, 2, 32, 352, 1024
BATCH = {name: tensor.numpy() for name, tensor in packed_batch(B, T, V).items()}
ANGLES = np.random.default_rng(0).random((1, T, D // 2), np.float32)
QKV: list[tuple[int, ...]] = [(B, H, T, D), (B, K, T, D), (B, K, T, D)]
Case = tuple[Callable[..., Any], Callable[..., Any], list[tuple[int, ...]]]


def cases(package: str, constant: Callable[[np.ndarray], Any]) -> dict[str, Case]:
    """Name → (plain function of the level, how it is called, shapes of its inputs)."""
    names = ("attention", "cross_entropy", "embeddings", "feed_forward", "linear", "normalization", "rope")
    attention, cross_entropy, embeddings, feed_forward, linear, normalization, rope = (
        import_module(f"{package}.models.blocks.{name}") for name in names
    )
    log_probs = import_module(f"{package}.models.log_probs")
    packing = import_module(f"{package}.models.packing").Packing(constant(BATCH["document_ids"]))
    ids, turns = constant(BATCH["input_ids"]), (constant(np.cos(ANGLES)), constant(np.sin(ANGLES)))
    targets = ids.reshape(-1)
    layers = [linear.Linear(C, size * D, bias=False) for size in (H, K, K)]
    return {
        "causal_attention": (attention.causal_attention, lambda f, q, k, v: f(q, k, v), QKV),
        "causal_attention, packed": (
            attention.causal_attention,
            lambda f, q, k, v: f(q, k, v, attention.AttentionMask(T, T, packing=packing)),
            QKV,
        ),
        "linear_cross_entropy": (
            cross_entropy.linear_cross_entropy,
            lambda f, h, w: f(h, w, targets),
            [(B * T, C), (V, C)],
        ),
        "linear_log_probs": (
            log_probs.linear_log_probs,
            lambda f, h, w: f(h, w, targets),
            [(B * T, C), (V, C)],
        ),
        "rms_norm": (normalization.rms_norm, lambda f, x, w: f(x, w, 1e-5), [(B, T, C), (C,)]),
        "layer_norm": (
            normalization.layer_norm,
            lambda f, x, w, b: f(x, w, b, 1e-5),
            [(B, T, C), (C,), (C,)],
        ),
        "swiglu": (feed_forward.swiglu, lambda f, x: f(x), [(B, T, 2 * F)]),
        "gelu_new": (feed_forward.gelu_new, lambda f, x: f(x), [(B, T, 4 * C)]),
        "apply_rotary": (rope.apply_rotary, lambda f, x: f(x, *turns), QKV[:1]),
        "merged_linear": (linear.merged_linear, lambda f, x: f(x, layers), [(B, T, C)]),
        "embed": (embeddings.embed, lambda f, w: f(w, ids), [(V, C)]),
    }


def tensors(package: str, shapes: list[tuple[int, ...]]) -> list[Any]:
    """Random leaves of the level."""
    generator = np.random.default_rng(1)
    arrays = [generator.standard_normal(shape, np.float32) for shape in shapes]
    if package == "v2_handwritten":
        return [torch.from_numpy(array).requires_grad_() for array in arrays]
    return [import_module("v3_numpy_deep.autograd").Tensor(array, requires_grad=True) for array in arrays]


def seconds(case: Case, version: Callable[..., Any], inputs: list[Any]) -> float:
    """One forward and backward pass."""
    started = time.perf_counter()
    case[1](version, *inputs).sum().backward()
    return time.perf_counter() - started


def run(repeats: int = 9) -> Iterator[dict[str, Any]]:
    """Rows for the table of `python -m tests.benchmarks`."""
    for level, package, kernels, constant in (
        ("v2", "v2_handwritten", "v2_handwritten.kernels", torch.from_numpy),
        ("v3", "v3_numpy_deep", "v3_numpy_deep.autograd.kernels", lambda array: array),
    ):
        module = import_module(kernels)
        for name, case in cases(package, constant).items():
            inputs = tensors(package, case[2])
            versions = {choice: module.kernel(choice, case[0]) for choice in module.KERNELS}
            others = [choice for choice in versions if versions[choice] is not case[0]]
            times: dict[str, list[float]] = {choice: [] for choice in ("plain", *others)}
            for _ in range(repeats + 1):  # the first round warms up
                for choice in times:
                    times[choice].append(seconds(case, versions[choice], inputs))
            medians = {choice: statistics.median(found[1:]) for choice, found in times.items()}
            for choice in others:
                yield {
                    "what": f"{level} {name}, forward and backward: {choice} against plain",
                    "ratio": medians["plain"] / medians[choice],
                    **{f"{kind} ms": 1000 * median for kind, median in medians.items()},
                }


if __name__ == "__main__":
    for row in run():
        print(f"{row['ratio']:6.2f}  {row['what']}  ({row['plain ms']:.2f} ms plain)")
