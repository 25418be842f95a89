"""Which tiles of queries and keys a mask leaves to compute: the plan that attention.py and flash_attention.py work through.

`plan_windows`: each query in one tile, with all the keys it can see. `plan_pieces`: windows cut among the keys too, and the tiles of
sparse patterns, where a query is in several. Both are made once for a mask. Theory: attention.md, flash_attention.md.

Level 3: autograd/fused/attention_tiles.py, for its one kernel.

    plan_pieces(AttentionMask(T, T).of(AttentionPattern("sliding_attention", 512)))
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shared_data.attention.patterns import cut, tiles_of_text
from v2_handwritten.models.blocks.attention_mask import MASKED, AttentionMask
from v2_handwritten.models.packing import Packing

QUERY_TILE = 128  # queries in a tile
KEY_TILE = 2048  # keys in a tile of the flash kernel


@dataclass(frozen=True)
class Tile:
    """Some queries and some keys, in one row of the batch or in all."""

    rows: slice
    queries: slice | Tensor  # which positions
    keys: slice
    mask: (
        Float[Tensor, "#B t n"] | None
    )  # additive, for the last n keys of the tile; nothing hides those before


def queries_of(x: Float[Tensor, "B K G T X"], tile: Tile) -> Float[Tensor, "BK Gt X"]:
    """The tile's rows of x, those of the heads that share a key-value head below each other."""
    part = x[tile.rows, :, :, tile.queries]
    return part.reshape(-1, part.shape[2] * part.shape[3], part.shape[4])


def by_position(rows: Float[Tensor, "BK Gt X"], K: int, G: int) -> Float[Tensor, "B t K G X"]:
    """The inverse, in the order of the output."""
    return rows.view(-1, K, G, rows.shape[1] // G, rows.shape[2]).permute(0, 3, 1, 2, 4)


def keys_of(x: Float[Tensor, "B K S X"], tile: Tile) -> Float[Tensor, "BK n X"]:
    """The tile's keys of x, a matrix for each key-value head: a view, where x is contiguous."""
    return x[tile.rows, :, tile.keys].flatten(0, 1)


def plan_windows(mask: AttentionMask) -> list[Tile]:
    """Tiles of queries in all rows of the batch, with the keys up to the last of them; of a mask without a pattern."""
    # Reading where documents end would make a GPU wait for the CPU.
    if mask.packing is not None and torch.device(mask.device).type != "cuda":
        return _document_windows(mask.packing)
    additive = None if mask.is_causal else mask.additive()
    triangle = AttentionMask(QUERY_TILE, QUERY_TILE, mask.device).additive()
    tiles = []
    for start in range(0, mask.T, QUERY_TILE):
        queries = slice(start, min(start + QUERY_TILE, mask.T))
        keys = slice(0, mask.S - mask.T + queries.stop)  # later keys are in the future of the whole tile
        length = queries.stop - queries.start
        # Among the keys before the tile's first query, plain causal attention has nothing to hide.
        hidden = triangle[:, :length, :length] if additive is None else additive[:, queries, keys]
        tiles.append(Tile(slice(None), queries, keys, hidden))
    return tiles


def _documents(packing: Packing) -> Iterator[tuple[slice, int, int]]:
    """The row, the beginning and the end of each document."""
    for row, ids in enumerate(packing.document_ids):
        ends = ((ids.diff() != 0).nonzero().flatten() + 1).tolist()
        for begin, end in itertools.pairwise([0, *ends, len(ids)]):
            yield slice(row, row + 1), begin, end


def _document_windows(packing: Packing) -> list[Tile]:
    """Tiles that end where a document ends: the time grows with the documents' lengths, not with the row's.

    The branches of a document come after its prefix. Only among their keys, the last of a window, is anything to hide.
    """
    document_ids, branch_ids = packing.document_ids, packing.branch_ids
    triangle = AttentionMask(2 * QUERY_TILE, 2 * QUERY_TILE).additive()
    tiles = []
    for row, begin, end in _documents(packing):
        fork = end if branch_ids is None else begin + int((branch_ids[row, begin:end] == 0).sum())
        for start, stop in [*cut(begin, fork, QUERY_TILE), *cut(fork, end, QUERY_TILE)]:
            hidden = triangle[:, : stop - start, : stop - start]
            if branch_ids is not None and start >= fork:
                branches = Packing(document_ids[row, fork:stop], branch_ids[row, fork:stop])
                mask = AttentionMask(stop - fork, stop - fork, packing=branches)
                hidden = mask.additive()[:, start - fork :]
            tiles.append(Tile(row, slice(start, stop), slice(begin, stop), hidden))
    return tiles


def plan_pieces(mask: AttentionMask) -> list[list[Tile]]:
    """Tiles of at most about `QUERY_TILE` queries and `KEY_TILE` keys, whatever the mask; those of the same queries together."""
    groups = itertools.groupby(_pieces(mask), key=lambda tile: (tile.rows, tile.queries))
    return [list(group) for _, group in groups]


def _pieces(mask: AttentionMask) -> list[Tile]:
    packing = mask.packing
    if packing is None and mask.attention_mask is None:
        return _text_pieces(mask, [(slice(None), 0, mask.S)])
    if packing is None or torch.device(mask.device).type == "cuda":
        return _dense_pieces(mask)
    if packing.branch_ids is None:
        return _text_pieces(mask, _documents(packing))
    if mask.pattern.is_full:
        return [piece for window in _document_windows(packing) for piece in _cut_window(window)]
    return _dense_pieces(mask)


def _text_pieces(mask: AttentionMask, texts: Sequence | Iterator) -> list[Tile]:
    """The tiles of the mask's pattern in each text, given as rows, first and last column. Equal edges share one mask."""
    additive: dict[int, Tensor] = {}
    tiles = []
    for rows, begin, end in texts:
        past = mask.S - mask.T
        for queries, keys, hidden in tiles_of_text(mask.pattern, begin, end, past, QUERY_TILE, KEY_TILE):
            if hidden is not None and id(hidden) not in additive:
                edge = hidden[:, hidden.any(axis=0).argmax() :]  # from the first key that a query may not see
                additive[id(hidden)] = _additive(torch.tensor(edge, device=mask.device)).unsqueeze(0)
            tiles.append(Tile(rows, queries, keys, None if hidden is None else additive[id(hidden)]))
    return tiles


def _additive(hidden: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return torch.zeros_like(hidden, dtype=torch.float32).masked_fill_(hidden, MASKED)


def _cut_window(window: Tile) -> Iterator[Tile]:
    """A window cut among its keys: those before the masked ones, which nothing hides, and these."""
    assert window.mask is not None, "the end of a window is masked"
    masked = window.keys.stop - window.mask.shape[-1]
    for left, right in cut(window.keys.start, masked, KEY_TILE):
        yield Tile(window.rows, window.queries, slice(left, right), None)
    for left, right in cut(masked, window.keys.stop, KEY_TILE):
        part = window.mask[..., left - masked : right - masked]
        yield Tile(window.rows, window.queries, slice(left, right), part)


def _dense_pieces(mask: AttentionMask) -> list[Tile]:
    """Any mask, a few queries at a time, in blocks of keys of which the empty ones are skipped; a GPU waits for each to be known."""
    tiles = []
    for start in range(0, mask.T, QUERY_TILE):
        queries = slice(start, min(start + QUERY_TILE, mask.T))
        hidden = ~mask.allowed(queries)
        for left, right in cut(0, mask.S, KEY_TILE // 4):
            part = hidden[:, :, left:right]
            if not part.all():
                additive = _additive(part) if part.any() else None
                tiles.append(Tile(slice(None), queries, slice(left, right), additive))
    return tiles


def partial_tiles(tiles: Sequence[Tile], wanted: Bool[Tensor, "B T"]) -> list[Tile]:
    """What is left of the tiles when only these queries are wanted."""
    positions = torch.arange(wanted.shape[1])
    partial = []
    for tile in tiles:
        for row in range(*tile.rows.indices(len(wanted))):
            inside, hidden = wanted[row, tile.queries], None
            if tile.mask is not None:
                hidden = tile.mask[row % len(tile.mask)].unsqueeze(0)
            if inside.all():
                partial.append(Tile(slice(row, row + 1), tile.queries, tile.keys, hidden))
            elif inside.any():
                hidden = None if hidden is None else hidden[:, inside]
                queries = positions[tile.queries][inside]
                partial.append(Tile(slice(row, row + 1), queries, tile.keys, hidden))
    return partial
