"""Several processor cores: a batch is cut into shards, each with a thread and a history of its own.

NumPy computes elementwise operations on one core, and most of a training step is elementwise. But it lets go of Python's
lock while it computes, so threads that work on different sequences, or on different documents of a packed one, run at the
same time. The rows that the shards compute stand behind one another in the result, and the gradient of a parameter is the sum of
the shards': data parallelism, as between many GPUs (Li et al. 2020, "PyTorch Distributed", section 3), inside one process.

`in_threads` is one operation to the engine: its derivative runs the shards' backward passes in the same threads and adds
their gradients in a fixed order, so that the same number of threads gives the same bits. models/sharding.py says how a batch
is cut. Levels 1 and 2 need none of this: torch's kernels use all cores by themselves.

    uv run python -c "from v3_numpy_deep.autograd.parallel import available_threads; print(available_threads())"
"""

import ctypes
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from v3_numpy_deep.autograd.tensor import Array, Tensor, is_recording, no_grad, record

MOST_THREADS = 4  # only one thread at a time runs Python itself; with more of them, they would wait for it


def available_threads() -> int:
    """As many threads as NumPy's BLAS is set to use (by default all cores), up to four."""
    blas = _openblas()
    cores = blas.scipy_openblas_get_num_threads64_() if blas is not None else os.cpu_count() or 1
    return min(cores, MOST_THREADS)


def shards(size: int, threads: int) -> list[slice]:
    """`size` rows in at most `threads` parts of about the same length."""
    parts = max(1, min(threads, size))
    ends = [size * part // parts for part in range(parts + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def in_threads(
    function: Callable[[Any], Tensor], parts: Sequence[Any], parameters: Sequence[Tensor]
) -> Tensor:
    """The rows of `function(part)` of all parts, behind one another, computed at the same time.

    `function` may read tensors that require gradients only among `parameters`.
    """
    recording = is_recording()

    def forward(part: Any) -> Tensor:
        if recording:  # the mode belongs to a thread
            return function(part)
        with no_grad():
            return function(part)

    outputs = _run(forward, parts)
    ends = np.cumsum([len(output) for output in outputs])

    def derivative(g: Array) -> list[Any]:
        pieces = np.split(g, ends[:-1])
        found = _run(lambda index: outputs[index].gradients(pieces[index]), range(len(outputs)))
        outputs.clear()
        return [_add([gradients.get(parameter) for gradients in found]) for parameter in parameters]

    return record(np.concatenate([output.data for output in outputs]), tuple(parameters), derivative)


def _add(gradients: Sequence[Any]) -> Any:
    """The sum of those that are not None, from the first to the last."""
    there = [gradient for gradient in gradients if gradient is not None]
    return functools.reduce(np.add, there) if there else None


def _run(function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
    """`function` of each argument, in threads; meanwhile BLAS keeps to the thread that calls it."""
    with _single_threaded_blas():
        return list(_pool(len(arguments)).map(function, arguments))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """The threads; they are started once."""
    return ThreadPoolExecutor(threads, thread_name_prefix="shard")


@contextmanager
def _single_threaded_blas() -> Iterator[None]:
    """Without this, every shard's matrix products would wait for each other to have all cores."""
    blas = _openblas()
    if blas is None:
        yield
        return
    before = blas.scipy_openblas_get_num_threads64_()
    blas.scipy_openblas_set_num_threads64_(1)
    try:
        yield
    finally:
        blas.scipy_openblas_set_num_threads64_(before)


@functools.cache
def _openblas() -> Any:
    """The OpenBLAS that comes with NumPy's wheels, or None where NumPy was built with another library."""
    for path in (Path(np.__file__).parent.parent / "numpy.libs").glob("*openblas64*"):
        library = ctypes.CDLL(str(path))
        if hasattr(library, "scipy_openblas_set_num_threads64_"):
            return library
    return None
