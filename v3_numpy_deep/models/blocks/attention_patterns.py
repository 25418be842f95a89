"""Sparse attention: which earlier tokens a query looks at, when not at all of them.

Each pattern is one line, a condition on t, the position of the query in its text, and s, that of the key. Whatever the pattern, s ≤ t,
and the first `num_sink_tokens` of the text stay visible: the attention sinks of Xiao et al. 2023 (StreamingLLM), which in a causal
model are the same mask as the global tokens of Beltagy et al. 2020 (Longformer).

The plain formula computes all pairs and hides those that are not visible. The fused operation never touches them: tiles that hold the
visible pairs come from shared_data/attention/patterns.py.

Level 1: `sliding_window` and `layer_types` of transformers. Level 2: the same over torch.

    uv run python -c "import numpy as np; from v3_numpy_deep.models.blocks.attention_patterns import *; print(visible(AttentionPattern('strided_attention', 3), np.arange(9), np.arange(9)).astype(int))"
"""

from collections.abc import Callable

from jaxtyping import Bool, Int

from shared_data.attention.patterns import AttentionPattern
from v3_numpy_deep.autograd import Array

__all__ = ["AttentionPattern", "visible"]

_Rule = Callable[[Array, Array, int], Array]  # of t, s and the pattern's size
_RULES: dict[str, _Rule] = {
    # Vaswani et al. 2017: everything.
    "full_attention": lambda t, s, size: s <= t,
    # Child et al. 2019, Beltagy et al. 2020, Jiang et al. 2023 (Mistral 7B): the last tokens, the query's own included.
    "sliding_attention": lambda t, s, size: t - s < size,
    # Qiu et al. 2020 (BlockBERT), Llama 4: blocks that know nothing of each other.
    "chunked_attention": lambda t, s, size: t // size == s // size,
    # Child et al. 2019 (Sparse Transformer), section 4.2, both of its heads in one: the last tokens, and every size-th.
    "strided_attention": lambda t, s, size: (t - s < size) | ((t - s) % size == 0),
}


def visible(
    pattern: AttentionPattern,
    query_positions: Int[Array, "*B T"],
    key_positions: Int[Array, "*B S"],
) -> Bool[Array, "*B T S"]:
    """Whether each query may look at each key of its text, by their positions in it."""
    t, s = query_positions[..., None], key_positions[..., None, :]
    return (s <= t) & (_RULES[pattern.kind](t, s, pattern.size) | (s < pattern.num_sink_tokens))
