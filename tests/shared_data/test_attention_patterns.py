"""Tiles of sparse attention: what a pattern shows, they hold exactly once; their number and their edges grow with the length."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared_data.attention.patterns import KINDS, AttentionPattern, Tile, tiles_of_text, visible_pairs
from shared_data.errors import UserError
from v2_handwritten.models.blocks.attention_patterns import visible

patterns = st.builds(
    AttentionPattern,
    st.sampled_from(list(KINDS)),
    size=st.integers(1, 40),
    num_sink_tokens=st.integers(0, 40),
)


def dense(pattern: AttentionPattern, T: int) -> np.ndarray:
    """The definition of level 2 as a square of booleans."""
    return visible(pattern, torch.arange(T), torch.arange(T)).numpy()


def area(tile: Tile, T: int) -> int:
    return len(range(*tile.queries.indices(T))) * len(range(*tile.keys.indices(T)))


def test_a_window_of_two_in_a_text_of_four() -> None:
    pattern = AttentionPattern("sliding_attention", 2)
    assert dense(pattern, 4).astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    first, second = tiles_of_text(pattern, 0, 4, tile_queries=2)
    assert (first.queries, first.keys) == (slice(0, 2), slice(0, 2))
    assert first.hidden is not None
    assert first.hidden.tolist() == [[False, True], [False, False]]
    assert (second.queries, second.keys) == (slice(2, 4), slice(1, 4))
    assert visible_pairs(pattern, 4) == 7


@given(
    pattern=patterns,
    length=st.integers(1, 60),
    before=st.integers(0, 5),
    past=st.integers(0, 64),
    tile_queries=st.integers(1, 50),
    tile_keys=st.integers(1, 50),
)
def test_tiles_hold_each_visible_pair_exactly_once(
    pattern: AttentionPattern, length: int, before: int, past: int, tile_queries: int, tile_keys: int
) -> None:
    """Of a text behind `before` columns of padding, whose first `past` columns come from a cache."""
    stop = before + length
    past = min(past, stop - 1)
    held = np.zeros((stop - past, stop), int)
    for queries, keys, hidden in tiles_of_text(pattern, before, stop, past, tile_queries, tile_keys):
        assert held[queries, keys].size, "an empty tile"
        held[queries, keys] += 1 if hidden is None else ~hidden
    expected = np.zeros((stop, stop), int)
    expected[before:, before:] = dense(pattern, length)
    np.testing.assert_array_equal(held, expected[past:])


@given(pattern=patterns, T=st.integers(1, 60))
def test_the_number_of_visible_pairs_is_that_of_the_definition(pattern: AttentionPattern, T: int) -> None:
    assert visible_pairs(pattern, T) == dense(pattern, T).sum()


@given(pattern=patterns, T=st.integers(1, 60))
def test_every_query_sees_itself_and_nothing_later(pattern: AttentionPattern, T: int) -> None:
    pairs = dense(pattern, T)
    assert pairs.diagonal().all()
    assert not np.triu(pairs, 1).any()


@pytest.mark.parametrize("sinks", [0, 4])
@pytest.mark.parametrize(
    ("kind", "size"), [("sliding_attention", 512), ("chunked_attention", 512), ("strided_attention", 90)]
)
def test_the_plan_of_a_long_text_is_small_and_tight(kind: str, size: int, sinks: int) -> None:
    """Twice the length is twice the tiles (of strides, √2 times the window's and the residues'), with the same few edges."""
    pattern, counts = AttentionPattern(kind, size, sinks), []
    for T in (8_192, 16_384):
        tiles = tiles_of_text(pattern, 0, T)
        edges = {id(tile.hidden): tile.hidden.nbytes for tile in tiles if tile.hidden is not None}
        assert len(edges) < 16
        assert sum(edges.values()) < 2**20
        assert sum(area(tile, T) for tile in tiles) < 2.5 * visible_pairs(pattern, T)
        counts.append(len(tiles))
    assert counts[1] < 2.1 * counts[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sliding_attention",), "sliding_window is 0, .* set it to 1 or more"),
        (("chunked_attention", -3), "attention_chunk_size is -3, "),
        (("strided_attention", 0), "attention_stride is 0, "),
        (("windowed", 4), "no attention pattern 'windowed'; choose one of full_attention, sliding_attention"),
        (("full_attention", 0, -1), "num_sink_tokens is -1; set it to 0 or more"),
    ],
)
def test_a_pattern_that_cannot_be_is_refused_in_one_line(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        AttentionPattern(*arguments)
    assert "\n" not in str(error.value)
