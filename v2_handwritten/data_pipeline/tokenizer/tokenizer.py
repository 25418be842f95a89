"""The tokenizer of this level: everything around BPE is shared (`shared_data/tokenizer`), the merges are applied here, one word at a time.

uv run python -c "from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe; t = train_bpe(['a cat, a hat'], 260); print(t.encode('a rat'))"
"""

from pathlib import Path

from shared_data.tokenizer import tokenizer as shared
from v2_handwritten.data_pipeline.tokenizer.bpe_encode import Merges, merge_words


class Tokenizer(shared.Tokenizer):
    """A BPE tokenizer whose merges are applied by `bpe_encode.py`."""

    bpe = (Merges, merge_words)


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """The tokenizer of a folder, or of a `tokenizer.json`; raises `UserError` where it is missing or damaged."""
    return Tokenizer.load(folder)
