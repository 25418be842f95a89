"""Keep freed memory in the process, as torch's allocators do.

A training step allocates the same few hundred megabytes as the step before and frees all of it. By default the C library
returns such blocks to the operating system and asks for them again, and every page of 4 KiB that comes back is a fault that
the kernel answers with zeros: about 29,000 of them, or 14 % of the time, in a step of the tiny model. Three settings of
glibc's malloc end that; elsewhere (macOS, Windows, musl) nothing happens.

    uv run python -c "from v3_numpy_deep.autograd.memory import keep_freed_memory; print(keep_freed_memory())"
"""

import ctypes
import functools
import sys

# Names and numbers from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
ONE_GIB = 1 << 30


@functools.cache
def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed memory instead of returning it; True if it did. Call it before starting threads."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = [
        (M_TRIM_THRESHOLD, ONE_GIB),  # return the end of the heap only when this much is free
        (M_MMAP_THRESHOLD, ONE_GIB),  # smaller blocks come from the heap
        (M_ARENA_MAX, 1),  # all threads use that heap
    ]
    accepted = [mallopt(name, value) == 1 for name, value in settings]
    return all(accepted)
