"""Which tiles of queries and keys a mask leaves to compute: the plan that the fused attention works through, made once for all layers.

A mask without a pattern needs one tile for a query, with all the keys it can see: windows, which end where a document does. A sparse
pattern comes as rectangles (shared_data/attention/patterns.py), and a query may be in several. Neither needs an array of T × S.
Padding and branches do: their tiles are cut from the mask's booleans.

    uv run python -c "from v3_numpy_deep.autograd.fused.attention_tiles import *; print(plan_tiles(AttentionMask(3, 3)))"
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from shared_data.attention.patterns import tiles_of_text
from v3_numpy_deep.autograd.tensor import Array
from v3_numpy_deep.models.blocks.attention_mask import AttentionMask

TILE_QUERIES = 64  # measured: fewer, larger products against fewer products with hidden keys
TILE_KEYS = 2048  # of a sparse pattern


class Tile(NamedTuple):
    """Some queries of one sequence and keys that they may see."""

    queries: slice | Int[Array, "t"]
    keys: slice
    masked: slice  # the keys, counted from the start of `keys`, that not all of the queries may see
    bias: Float[Array, "m 1 t"]  # for these: 0 where allowed, −∞ where not
    merge: bool = False  # whether an earlier tile has some of the queries


def plan_tiles(mask: AttentionMask) -> list[list[Tile]]:
    """The tiles of each sequence (one list, where all sequences have the same mask)."""
    if mask.plan is None:
        everything = np.ones((1, mask.T), bool)
        wanted = everything if mask.queries is None else mask.queries
        documents = everything if mask.packing is None else mask.packing.document_ids
        dense = mask.attention_mask is not None or _has_branches(mask)
        rows = mask.allowed() if dense else documents
        sequence = _dense_tiles if dense else _windows if mask.pattern.is_full else _pattern_tiles
        mask.plan = [
            list(sequence(mask, rows[b % len(rows)], wanted[b % len(wanted)]))
            for b in range(max(len(rows), len(wanted)))
        ]
    return mask.plan


def _has_branches(mask: AttentionMask) -> bool:
    return mask.packing is not None and mask.packing.branch_ids is not None


def _texts(mask: AttentionMask, document_ids: Array) -> Iterator[tuple[int, int]]:
    """First and last column of each text: a packed row's documents, or all S positions."""
    if mask.packing is None:
        return iter([(0, mask.S)])
    ends = (np.flatnonzero(np.diff(document_ids)) + 1).tolist()
    return itertools.pairwise([0, *ends, mask.S])


def _windows(mask: AttentionMask, document_ids: Array, wanted: Bool[Array, "T"]) -> Iterator[Tile]:
    """Some wanted queries and the keys of their document up to the last of them."""
    past = mask.S - mask.T
    for begin, end in _texts(mask, document_ids):
        first = max(begin - past, 0)
        positions = first + np.flatnonzero(wanted[first : end - past])
        for start in range(0, len(positions), TILE_QUERIES):
            queries = positions[start : start + TILE_QUERIES]
            masked = slice(int(queries[0]) + past + 1 - begin, int(queries[-1]) + past + 1 - begin)
            hidden = np.arange(begin + masked.start, begin + masked.stop)[:, None] > queries + past
            yield Tile(_as_slice(queries), slice(begin, begin + masked.stop), masked, _bias(hidden))


def _pattern_tiles(mask: AttentionMask, document_ids: Array, wanted: Bool[Array, "T"]) -> Iterator[Tile]:
    """The rectangles of a sparse pattern, without the queries that nobody wants."""
    seen = np.zeros(mask.T, bool)
    for begin, end in _texts(mask, document_ids):
        tiles = tiles_of_text(mask.pattern, begin, end, mask.S - mask.T, TILE_QUERIES, TILE_KEYS)
        for queries, keys, hidden in tiles:
            inside, merge = wanted[queries], bool(seen[queries].any())
            seen[queries] = True
            if inside.all():
                yield Tile(queries, keys, *_masked(hidden), merge)
            elif inside.any():
                some = None if hidden is None else hidden[inside]
                yield Tile(np.arange(mask.T)[queries][inside], keys, *_masked(some), merge)


def _dense_tiles(
    mask: AttentionMask, allowed: Bool[Array, "T S"], wanted: Bool[Array, "T"]
) -> Iterator[Tile]:
    """Cut the wanted queries into tiles. One ends where a document does (where the first visible key changes)."""
    positions = np.flatnonzero(wanted)
    allowed = allowed[positions]
    ends = [0, *(np.flatnonzero(np.diff(allowed.argmax(axis=1))) + 1).tolist(), len(allowed)]
    for begin, end in itertools.pairwise(ends):
        for start in range(begin, end, TILE_QUERIES):
            rows = slice(start, min(start + TILE_QUERIES, end))
            visible = np.flatnonzero(allowed[rows].any(axis=0))
            keys = slice(visible[0], visible[-1] + 1) if visible.size else slice(0, 1)
            yield Tile(_as_slice(positions[rows]), keys, *_masked(~allowed[rows, keys]))


def _masked(hidden: Bool[Array, "t n"] | None) -> tuple[slice, Float[Array, "m 1 t"]]:
    """The keys from the first to the last that any query may not see, and what is added to their scores."""
    columns = np.flatnonzero(hidden.any(axis=0)) if hidden is not None else np.zeros(0, int)
    if hidden is None or not columns.size:
        return slice(0, 0), np.zeros((0, 1, 1), np.float32)
    masked = slice(int(columns[0]), int(columns[-1]) + 1)
    return masked, _bias(hidden[:, masked].T)


def _bias(hidden: Bool[Array, "m t"]) -> Float[Array, "m 1 t"]:
    return np.where(hidden, np.float32(-np.inf), np.float32(0))[:, None]


def _as_slice(positions: Int[Array, "t"]) -> slice | Int[Array, "t"]:
    """Consecutive positions as a slice, which reads them without a copy."""
    first, last = int(positions[0]), int(positions[-1])
    return slice(first, last + 1) if last - first + 1 == len(positions) else positions
