"""Blocks of rows that stay in the cache.

A ufunc reads and writes memory, and memory is what limits it: ten ufuncs over an array larger than the cache are ten trips
to memory; the same ten over one block of 2^16 numbers after the other are one trip. Level 2 has no need of it: torch's
kernels do several steps of a formula for each number they read.
"""

from collections.abc import Iterator

BLOCK = 1 << 16  # numbers in a block: 256 KiB of float32, of which a level-2 cache holds several
# Logits in memory at a time: each block is also a matrix product, which gains from its size.
LOGITS_BLOCK = 1 << 18


def row_blocks(rows: int, columns: int, block: int = BLOCK) -> Iterator[slice]:
    """Consecutive slices of rows, of about `block` numbers each."""
    height = max(1, block // columns)
    return (slice(start, start + height) for start in range(0, rows, height))
