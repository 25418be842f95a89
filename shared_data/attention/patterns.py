"""Which earlier tokens a query may see (`AttentionPattern`), and the rectangles of queries and keys that hold exactly these pairs.

Full attention looks at all T² / 2 pairs of a text. A pattern keeps few of them, and a kernel that is to profit must never touch the
others. So a pattern is planned as *tiles*: slices of queries and keys, dense but for their edges. This is index arithmetic alone, the
same for both hand-written levels; what a tile computes is theirs, and so is the definition of each pattern, one line a kind
(models/blocks/attention_patterns.py), to which tests hold the tiles.

    python -c "from shared_data.attention.patterns import *; print(tiles_of_text(AttentionPattern('sliding_attention', 3), 0, 6))"
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from shared_data.errors import UserError

# Each kind, and the setting that `size` comes from; transformers' names, where it has the pattern.
KINDS = {
    "full_attention": "",
    "sliding_attention": "sliding_window",
    "chunked_attention": "attention_chunk_size",
    "strided_attention": "attention_stride",
}


@dataclass(frozen=True)
class AttentionPattern:
    """Which keys s a query t may see; positions count from the beginning of the text (a packed document, a prompt without its padding).

    kind and size: "sliding_attention", the last `size` tokens, its own included; "chunked_attention", the earlier tokens of its block of
    `size`; "strided_attention", the last `size` tokens, and before them every `size`-th; "full_attention", all.
    num_sink_tokens: so many first tokens of the text are visible to all later ones too. In a causal model Longformer's global tokens
    (which a bidirectional model also lets look at everything) and StreamingLLM's attention sinks are this same mask.

    Raises `UserError` for a kind that does not exist, a size below 1 and a negative number of sinks.
    """

    kind: str = "full_attention"
    size: int = 0
    num_sink_tokens: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"no attention pattern {self.kind!r}; choose one of {', '.join(KINDS)}")
        if not self.is_full and self.size < 1:
            raise UserError(
                f"{KINDS[self.kind]} is {self.size}, so a token would not even see itself; set it to 1 or more"
            )
        if self.num_sink_tokens < 0:
            raise UserError(f"num_sink_tokens is {self.num_sink_tokens}; set it to 0 or more")

    @property
    def is_full(self) -> bool:
        """Whether every earlier token is visible."""
        return self.kind == "full_attention"


class Tile(NamedTuple):
    """A rectangle of pairs: some queries and some keys, each a slice (with a step, in the strided pattern)."""

    queries: slice
    keys: slice
    hidden: Bool[np.ndarray, "t n"] | None  # pairs of the rectangle that are not visible; None where all are


def tiles_of_text(
    pattern: AttentionPattern,
    start: int,
    stop: int,
    past: int = 0,
    tile_queries: int = 128,
    tile_keys: int = 1024,
) -> list[Tile]:
    """Tiles that hold each visible pair of the text in columns [start, stop) exactly once.

    The first `past` columns of the row are keys of a cache: they have no queries, and queries are counted from there. A tile has about
    `tile_queries` times `tile_keys` pairs at most. Tiles of the same queries stand together. Time and memory of planning grow with the
    number of tiles; equal edges share one `hidden`.
    """
    length, first = stop - start, max(past - start, 0)
    size, sinks = pattern.size, min(pattern.num_sink_tokens, length)
    shape = (tile_queries, tile_keys)
    tiles: Iterator[Tile]
    if pattern.is_full:
        tiles = _band(first, length, length, shape)
    elif pattern.kind == "sliding_attention":
        tiles = itertools.chain(
            _band(first, length, size, shape), _sinks(first, length, size, sinks, 0, shape)
        )
    elif pattern.kind == "chunked_attention":
        tiles = _chunks(first, length, size, sinks, shape)
    else:
        local, remote = _band(first, length, size, shape), _strides(first, length, size, shape)
        tiles = itertools.chain(local, remote, _sinks(first, length, size, sinks, size, shape))
    return [Tile(_moved(t.queries, start - past), _moved(t.keys, start), t.hidden) for t in tiles]


def visible_pairs(pattern: AttentionPattern, T: int) -> int:
    """How many of the T (T + 1) / 2 causal pairs of a text the pattern keeps."""
    t = np.arange(T)
    if pattern.is_full:
        return int((t + 1).sum())
    size, sinks = pattern.size, pattern.num_sink_tokens
    if pattern.kind == "chunked_attention":
        return int((t % size + 1 + np.minimum(sinks, t // size * size)).sum())
    outside = np.clip(t - size + 1, 0, sinks)  # sinks that are no longer in the window
    kept = np.minimum(t + 1, size) + outside
    if pattern.kind == "strided_attention":  # every size-th, unless it is one of these sinks
        kept += t // size - (outside - t % size + size - 1).clip(0) // size
    return int(kept.sum())


def cut(begin: int, end: int, size: int) -> list[tuple[int, int]]:
    """Pieces of `size`, but the last of up to half as many more: fewer, larger products."""
    starts = [begin, *range(begin + size, end - size // 2, size)]
    return list(itertools.pairwise([*starts, end])) if begin < end else []


def _band(
    first: int, stop: int, window: int, shape: tuple[int, int], origin: int = 0, step: int = 1
) -> Iterator[Tile]:
    """Queries [first, stop), each with the `window` last keys from `origin` on; with a step, of every step-th position."""
    for begin, end in cut(first, stop, shape[0]):
        lowest = max(origin, begin - window + 1)
        for a, b in cut(0, end - lowest, shape[1]):  # from the diagonal backwards
            left, right = end - b, end - a
            edge = window if end - 1 - left >= window else 0
            hidden = _band_edges(begin - left, end - begin, right - left, edge)
            yield Tile(slice(begin, end), slice(left, right), hidden)


def _chunks(first: int, stop: int, size: int, sinks: int, shape: tuple[int, int]) -> Iterator[Tile]:
    """Plain causal attention inside each chunk; then the sinks, which are seen from all chunks after their own."""
    for begin in range(first // size * size, stop, size):
        end, query = min(begin + size, stop), max(begin, first)
        yield from _band(query, end, size, shape, origin=begin)
        if 0 < begin < sinks:
            yield from (Tile(slice(*part), slice(0, begin), None) for part in cut(query, end, shape[0]))
    begin = max(first, -(-sinks // size) * size, size)
    if sinks:
        yield from (
            Tile(slice(*part), slice(0, sinks), None) for part in cut(begin, stop, _tall(sinks, shape))
        )


def _strides(first: int, stop: int, stride: int, shape: tuple[int, int]) -> Iterator[Tile]:
    """Positions r, r + stride, … see those before them: plain causal attention of that sequence, keys one step behind their queries."""
    for residue in range(min(stride, stop - stride)):
        length = -(-(stop - stride - residue) // stride)  # queries residue + stride, residue + 2 stride, …
        begin = max(0, -(-(first - stride - residue) // stride))
        for queries, keys, hidden in _band(begin, length, length, shape):
            yield Tile(
                _every(stride, queries, residue + stride),
                _every(stride, keys, residue),
                hidden,
            )


def _every(stride: int, part: slice, first: int) -> slice:
    """Positions first, first + stride, …, of which `part` are the numbers."""
    return slice(first + stride * part.start, first + stride * part.stop, stride)


def _sinks(
    first: int, stop: int, window: int, sinks: int, stride: int, shape: tuple[int, int]
) -> Iterator[Tile]:
    """The first tokens, for queries that no longer have them in their window (nor, with a stride, among its positions)."""
    if not sinks:
        return
    inside = window + sinks - 1  # from here on, no sink is in the window
    start = max(first, window)
    if start < min(inside, stop):
        yield from _sink_tiles(start, min(inside, stop), window, sinks, stride, shape[0])
    rows = _tall(sinks, shape)
    if stride:
        rows = -(-rows // stride) * stride  # whole periods, so that the edges repeat
    yield from _sink_tiles(max(start, inside), stop, window, sinks, stride, rows)


def _sink_tiles(begin: int, stop: int, window: int, sinks: int, stride: int, rows: int) -> Iterator[Tile]:
    for start in range(begin, stop, rows):
        end = min(start + rows, stop)
        far = window + sinks
        offset = start if start < far else far + (start - far) % (stride or 1)
        yield Tile(
            slice(start, end), slice(0, sinks), _sink_edges(offset, end - start, sinks, window, stride)
        )


@lru_cache(maxsize=512)
def _band_edges(offset: int, t: int, n: int, window: int) -> Bool[np.ndarray, "t n"] | None:
    """Pairs in the future or, unless `window` is 0, behind it; the first query stands `offset` behind the first key."""
    distance = offset + np.arange(t)[:, None] - np.arange(n)
    return _shared((distance < 0) | (distance >= window) if window else distance < 0)


@lru_cache(maxsize=512)
def _sink_edges(offset: int, t: int, sinks: int, window: int, stride: int) -> Bool[np.ndarray, "t n"] | None:
    """Sinks that the query sees anyway: in its window, or at a multiple of the stride."""
    distance = offset + np.arange(t)[:, None] - np.arange(sinks)
    return _shared((distance < window) | (distance % stride == 0) if stride else distance < window)


def _shared(hidden: Bool[np.ndarray, "t n"]) -> Bool[np.ndarray, "t n"] | None:
    """None where nothing is hidden; else read-only, since many tiles hold it."""
    hidden.flags.writeable = False
    return hidden if hidden.any() else None


def _tall(sinks: int, shape: tuple[int, int]) -> int:
    """Queries of a tile that has so few keys."""
    return max(shape[0], shape[0] * shape[1] // sinks)


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by, part.step)
