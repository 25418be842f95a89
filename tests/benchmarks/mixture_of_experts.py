"""A mixture of experts, forward and backward: does time stay flat as experts are added, of which two read each token?

4,096 tokens that choose two experts at random, of 8, 16, 32 and 64 experts of the same size, taking turns in one process; and the
dense layer of as many active weights (two experts wide, on every token), the least that such a layer can cost.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.mixture_of_experts
"""

import statistics
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np

from tests.benchmarks.kernels import tensors

N, C, F, K = 4096, 128, 352, 2
SIZES = (8, 16, 32, 64)
LEVELS = {
    "v2": ("v2_handwritten", "v2_handwritten.kernels"),
    "v3": ("v3_numpy_deep", "v3_numpy_deep.autograd.kernels"),
}
Pass = tuple[Callable[..., Any], list[Any]]  # a function, and the leaves that it is applied to


def mixture(package: str, kernels: str, version: str, E: int) -> Pass:
    """`expert_mixture` with E experts on random tokens."""
    plain = import_module(f"{package}.models.blocks.mixture_of_experts").expert_mixture
    function = import_module(kernels).kernel(version, plain)
    experts: Any = np.random.default_rng(E).random((N, E)).argsort(axis=1)[:, :K]
    inputs = tensors(package, [(N, C), (N, K), (E, 2 * F, C), (E, C, F)])
    if package == "v2_handwritten":
        experts = import_module("torch").from_numpy(experts.copy())
    return lambda x, weights, *matrices: function(x, weights, experts, *matrices), inputs


def dense(package: str, kernels: str) -> Pass:
    """SwiGLU as wide as the active experts together."""
    linear = import_module(f"{package}.models.blocks.linear").linear
    plain = import_module(f"{package}.models.blocks.feed_forward").swiglu
    swiglu = import_module(kernels).kernel("fused", plain)
    inputs = tensors(package, [(N, C), (2 * K * F, C), (C, K * F)])
    return lambda x, gate_up, down: linear(swiglu(linear(x, gate_up)), down), inputs


def seconds(function: Callable[..., Any], inputs: list[Any]) -> float:
    """One forward and backward pass; as in training, no gradient is left from the pass before."""
    for leaf in inputs:
        leaf.grad = None
    started = time.perf_counter()
    function(*inputs).sum().backward()
    return time.perf_counter() - started


def run(repeats: int = 9) -> Iterator[dict[str, Any]]:
    """Rows for the table of `python -m tests.benchmarks`."""
    for level, modules in LEVELS.items():
        passes = {(v, E): mixture(*modules, v, E) for v in ("plain", "fused") for E in SIZES}
        passes["dense", K] = dense(*modules)
        taken: dict[tuple[str, int], list[float]] = {name: [] for name in passes}
        for _ in range(repeats + 1):  # the first round warms up
            for name, each in passes.items():
                taken[name].append(seconds(*each))
        medians = {name: statistics.median(found[1:]) for name, found in taken.items()}
        milliseconds = {f"{version} {E} ms": 1000 * median for (version, E), median in medians.items()}
        for E in SIZES:
            what = f"{level} mixture of {E} experts, forward and backward: fused against plain"
            yield {"what": what, "ratio": medians["plain", E] / medians["fused", E], **milliseconds}
        for E in SIZES[1:]:
            what = f"{level} mixture, fused: time with {E} experts ÷ with {SIZES[0]}"
            target = {"target": "≤ 1.3"} if E == 64 else {}
            yield {"what": what, "ratio": medians["fused", E] / medians["fused", SIZES[0]], **target}
        what = (
            f"{level} mixture of {SIZES[0]} experts, fused: time ÷ that of the dense layer of the active size"
        )
        yield {"what": what, "ratio": medians["fused", SIZES[0]] / medians["dense", K]}


if __name__ == "__main__":
    for row in run():
        print(f"{row['ratio']:6.2f}  {row.get('target', ''):6}  {row['what']}")
