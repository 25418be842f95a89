"""Attention over the length of a text, level 2, forward and backward: time and peak memory of the formula, of causal tiles and of patterns.

One row, four heads of 32 channels on two key-value heads. The formula is measured while its weights fit (up to 8,192 tokens its memory,
up to 4,096 its time); `flash` is the kernel of the patterns on plain causal attention.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.attention_patterns
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from shared_data.attention.patterns import AttentionPattern
from tests.peak_memory import peak_memory
from v2_handwritten.kernels.fused.attention import causal_attention as fused
from v2_handwritten.kernels.fused.flash_attention import flash_attention
from v2_handwritten.models.blocks.attention import causal_attention as plain
from v2_handwritten.models.blocks.attention_mask import AttentionMask

H, K, D = 4, 2, 32
LENGTHS = (1024, 2048, 4096, 8192)
LONGEST_FORMULA = 4096  # whose time is measured
MIB = 2**20


def versions(T: int) -> dict[str, tuple[Callable[..., Tensor], AttentionPattern]]:
    """Name → function and pattern."""
    full = AttentionPattern()
    return {
        "formula": (plain, full),
        "causal": (fused, full),
        "flash": (flash_attention, full),
        "window 512": (fused, AttentionPattern("sliding_attention", 512)),
        "window 512, 4 sinks": (fused, AttentionPattern("sliding_attention", 512, 4)),
        "chunks of 512": (fused, AttentionPattern("chunked_attention", 512)),
        "strides of √T": (fused, AttentionPattern("strided_attention", math.isqrt(T))),
    }


def step(function: Callable[..., Tensor], pattern: AttentionPattern, T: int) -> Callable[[], None]:
    """A forward and backward pass, its plan included."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, T, D, generator=generator, requires_grad=True) for heads in (H, K, K))
    return lambda: function(q, k, v, AttentionMask(T, T).of(pattern)).sum().backward()


def measure(T: int, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds and MiB of each version, taking turns."""
    steps = {name: step(*version, T) for name, version in versions(T).items()}
    memory = {name: peak_memory(run) / MIB for name, run in steps.items()}  # and a warm-up
    if T > LONGEST_FORMULA:
        del steps["formula"]
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, run in steps.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in times.items()}, memory


def run(repeats: int = 3) -> Iterator[dict[str, Any]]:
    """Rows for the table of `python -m tests.benchmarks`."""
    for T in LENGTHS:
        seconds, memory = measure(T, repeats)
        for name in memory:
            if name in seconds and name != "causal":
                yield {
                    "what": f"v2 attention, {T:,} tokens, forward and backward: {name} against causal tiles",
                    "ratio": seconds["causal"] / seconds[name],
                    "ms": 1000 * seconds[name],
                    **({"target": 5.0} if (name, T) == ("window 512", 8192) else {}),
                }
            if name != "formula":
                yield {
                    "what": f"v2 attention, {T:,} tokens, peak memory: {name} ÷ the formula's",
                    "ratio": memory[name] / memory["formula"],
                    "MiB": memory[name],
                    **({"target": "≤ 0.05"} if (name, T) == ("flash", 8192) else {}),
                }


if __name__ == "__main__":
    for row in run():
        unit = f"{row['ms']:.0f} ms" if "ms" in row else f"{row['MiB']:.0f} MiB"
        print(f"{row['ratio']:8.3f}  {row['what']}  ({unit})", flush=True)
