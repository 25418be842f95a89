"""Eight tokens under each pattern, as in v2_handwritten/models/blocks/attention_patterns.md."""

import torch

from shared_data.attention.patterns import tiles_of_text, visible_pairs
from tests.worked import agrees
from v2_handwritten.models.blocks.attention import attention_weights, causal_attention
from v2_handwritten.models.blocks.attention_mask import AttentionMask
from v2_handwritten.models.blocks.attention_patterns import AttentionPattern, visible

PAGE = "v2_handwritten/models/blocks/attention_patterns.md"

T = 8  # the fox hid . then the dog slept
PATTERNS = {
    "full": AttentionPattern(),
    "window of 3": AttentionPattern("sliding_attention", 3),
    "window of 3, 1 sink": AttentionPattern("sliding_attention", 3, num_sink_tokens=1),
    "chunks of 4": AttentionPattern("chunked_attention", 4),
    "strides of 3": AttentionPattern("strided_attention", 3),
}
# One head of one channel: the query of the last token is 1, so that its scores are the keys.
K = torch.tensor([3.0, 2, 1, 0, 0, 0, 1, 1])
V = torch.tensor([0.0, 8, 4, 0, 0, 0, 4, 2])


def head(x: torch.Tensor) -> torch.Tensor:
    return x.view(1, 1, -1, 1)


def test_which_tokens_each_query_sees() -> None:
    places = torch.arange(T)
    for name in list(PATTERNS)[1:]:
        agrees(PAGE, name, visible(PATTERNS[name], places, places).int())


def test_what_the_last_token_reads() -> None:
    weights, outputs = [], []
    for pattern in PATTERNS.values():
        mask = AttentionMask(1, T).of(pattern)
        weights.append(attention_weights(torch.ones(1, 1, 1, 1), head(K), mask).flatten())
        outputs.append(causal_attention(torch.ones(1, 1, 1, 1), head(K), head(V), mask).flatten())
    agrees(PAGE, "slept reads", torch.cat([torch.stack(weights), torch.stack(outputs)], dim=1))


def test_how_many_pairs_are_kept() -> None:
    long = [
        AttentionPattern(),
        AttentionPattern("sliding_attention", 512),
        AttentionPattern("sliding_attention", 512, 1),
        AttentionPattern("chunked_attention", 512),
        AttentionPattern("strided_attention", 90),
    ]
    counts = [
        [visible_pairs(short, T), visible_pairs(pattern, 8192)]
        for short, pattern in zip(PATTERNS.values(), long, strict=True)
    ]
    agrees(PAGE, "pairs", counts)


def test_the_tiles_of_the_window() -> None:
    """The exercise of the page: each pair once, and two of three pairs of a tile are visible."""
    rows = []
    for queries, keys, hidden in tiles_of_text(PATTERNS["window of 3"], 0, T, tile_queries=4):
        area = (queries.stop - queries.start) * (keys.stop - keys.start)
        rows.append([queries.start, queries.stop - 1, keys.start, keys.stop - 1, area, area - hidden.sum()])
    agrees(PAGE, "tile", rows)
    assert sum(row[-1] for row in rows) == visible_pairs(PATTERNS["window of 3"], T)
