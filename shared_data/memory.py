"""When freed memory goes back to the operating system: at once while a model is loaded, not at all while one is trained at level 3.

By default the C library keeps freed blocks of up to 32 MiB that lie between others. While a model is loaded, each tensor is read, turned and freed:
the holes that this leaves would be a fifth of the weights. A training step of NumPy allocates the same few hundred megabytes as the step before
and frees all of it: returned, every page of 4 KiB that comes back is a fault that the kernel answers with zeros, 29,000 of them, or
14 % of the time, in a step of the tiny model. (torch keeps such blocks itself.) Settings of glibc's malloc do both; elsewhere (macOS, Windows,
musl) nothing happens.

    uv run python -c "from shared_data.memory import keep_freed_memory; print(keep_freed_memory())"
"""

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Names and numbers from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
ONE_GIB, MIB, KIB = 1 << 30, 1 << 20, 1 << 10


@functools.cache
def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed memory instead of returning it; True if it did. Call it before starting threads."""
    # The end of the heap is returned only when this much is free; smaller blocks come from the heap; all threads use that heap.
    return _set((M_TRIM_THRESHOLD, ONE_GIB), (M_MMAP_THRESHOLD, ONE_GIB), (M_ARENA_MAX, 1))


@contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Inside, every freed block of 128 KiB and more goes back at once; after it glibc does as before."""
    _set((M_MMAP_THRESHOLD, 128 * KIB), (M_TRIM_THRESHOLD, 128 * KIB))
    try:
        yield
    finally:
        if keep_freed_memory.cache_info().currsize:
            _set((M_TRIM_THRESHOLD, ONE_GIB), (M_MMAP_THRESHOLD, ONE_GIB))
        else:  # what glibc itself arrives at
            _set((M_MMAP_THRESHOLD, 32 * MIB), (M_TRIM_THRESHOLD, 64 * MIB))


def _set(*settings: tuple[int, int]) -> bool:
    """Change settings of malloc; True where there is such a thing and it took them all."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    accepted = [mallopt(name, value) == 1 for name, value in settings]
    return all(accepted)
