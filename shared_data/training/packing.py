"""Padding taken out of a batch: which token of B padded rows goes where in a few long rows without padding.

The rows become documents of packed rows (lines), which a model attends to one by one. Rows that begin alike, such as several
completions of one prompt, become one document: the shared prefix stands there once, and what follows it in each row is a branch,
which sees the prefix and itself but no other branch. Both save multiplications and change no result.

Levels 2 and 3 run the lines through their models (models/packing.py). Level 1 leaves batches padded, as its libraries do.

    uv run python -c "import numpy as np; from shared_data.training.packing import *; print(pack_rows(np.array([[5, 6, 7], [5, 6, 8]]), np.ones((2, 3)), 8))"
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int64


@dataclass(frozen=True)
class PackedLine:
    """One packed row of whole documents."""

    input_ids: Int[np.ndarray, "1 n"]
    position_ids: Int64[np.ndarray, "1 n"]
    document_ids: Int64[np.ndarray, "1 n"]
    branch_ids: Int64[np.ndarray, "1 n"] | None  # 0 in a shared prefix; None where nothing is shared
    logits_to_keep: Bool[np.ndarray, "1 n"] | None


@dataclass(frozen=True)
class PackedRows:
    """The real tokens of B rows in lines, and where each is found in the lines' hidden states, put one behind another.

    where: [B, T], 0 at padding; of a batch with `logits_to_keep`, of these positions only, [N].
    """

    lines: list[PackedLine]
    where: Int64[np.ndarray, "*shape"]


def pack_rows(
    input_ids: Int[np.ndarray, "B T"],
    attention_mask: Int[np.ndarray, "B T"] | Bool[np.ndarray, "B T"],
    limit: int,
    share_prefixes: bool = True,
    logits_to_keep: Bool[np.ndarray, "B T"] | None = None,
) -> PackedRows | None:
    """Rows in as few lines of at most `limit` tokens as will do, all about equally long. None where nothing would be saved.

    share_prefixes: keep the common beginning of rows only once. logits_to_keep: the positions whose hidden states are wanted.
    """
    real = attention_mask.astype(bool)
    texts = [ids[mask] for ids, mask in zip(input_ids, real, strict=True)]
    documents = (
        _shared_prefixes(texts, limit) if share_prefixes else [(len(t), [i]) for i, t in enumerate(texts)]
    )
    shared = len(documents) < len(texts)
    if real.all() and not shared:
        return None
    lengths = [prefix + sum(len(texts[row]) - prefix for row in rows) for prefix, rows in documents]
    N = sum(lengths)
    slot = np.zeros(real.shape, np.int64)  # of each real token
    position_ids, document_ids, branch_ids = np.zeros((3, N), np.int64)
    begin = 0
    for document, (prefix, rows) in enumerate(documents):
        end = begin + prefix
        for branch, row in enumerate(rows, start=1):
            own = len(texts[row]) - prefix
            slots = np.r_[begin : begin + prefix, end : end + own]
            slot[row, real[row]] = slots
            position_ids[slots] = np.arange(len(slots))
            document_ids[slots] = document
            branch_ids[slots[prefix:]] = branch
            end += own
        begin = end
    packed_ids = np.zeros(N, input_ids.dtype)
    packed_ids[slot[real]] = input_ids[real]
    keep, where = None, slot
    if logits_to_keep is not None:
        slots = slot[real & logits_to_keep]
        keep = np.zeros(N, bool)
        keep[slots] = True
        where = keep.cumsum()[slots] - 1
    lines = [
        PackedLine(
            packed_ids[None, line],
            position_ids[None, line],
            document_ids[None, line],
            branch_ids[None, line] if shared else None,
            None if keep is None else keep[None, line],
        )
        for line in _lines(lengths, limit)
    ]
    return PackedRows(lines, where)


def _lines(lengths: Sequence[int], limit: int) -> list[slice]:
    """Documents of these lengths in lines: one ends where its share of all tokens is reached, or the limit would be passed."""
    N = sum(lengths)
    fair = N / -(-N // limit)
    ends = [0]
    position = 0
    for length in lengths:
        used = position - ends[-1]
        if used and (used >= fair or used + length > limit):
            ends.append(position)
        position += length
    return [slice(*line) for line in itertools.pairwise([*ends, N])]


def _shared_prefixes(texts: Sequence[Int[np.ndarray, " _"]], limit: int) -> list[tuple[int, list[int]]]:
    """Texts that begin alike, together: the length of their common prefix, and which they are; in the order of the first.

    The prefix must be at least half of each text: it is then worth the masks that keep its branches apart.
    """
    documents: list[tuple[int, list[int]]] = []
    for row in sorted(range(len(texts)), key=lambda row: texts[row].tolist()):  # neighbours begin alike
        if documents:
            prefix, rows = documents[-1]
            prefix = min(prefix, _common_length(texts[rows[0]], texts[row]))
            lengths = [len(texts[member]) for member in (*rows, row)]
            if 2 * prefix >= max(lengths) and sum(lengths) - prefix * len(rows) <= limit:
                documents[-1] = (prefix, [*rows, row])
                continue
        documents.append((len(texts[row]), [row]))
    return sorted(((prefix, sorted(rows)) for prefix, rows in documents), key=lambda document: document[1])


def _common_length(a: Int[np.ndarray, " N"], b: Int[np.ndarray, " M"]) -> int:
    """How many tokens two texts have in common at the beginning."""
    length = min(len(a), len(b))
    differ = a[:length] != b[:length]
    return int(differ.argmax()) if differ.any() else length
