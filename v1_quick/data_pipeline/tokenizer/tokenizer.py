"""The tokenizer of this level: the one that transformers loads, with its own `encode` and `decode`.

Levels 2 and 3 encode and decode by hand (`shared_data/tokenizer/tokenizer.py`). In a notebook:

    tokenizer = load_tokenizer("runs/v1/tiny/sft")
"""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from shared_data.errors import library_errors


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder, or of the folder of a `tokenizer.json`; raises `UserError` where it is missing or damaged."""
    path = Path(folder).parent if Path(folder).suffix == ".json" else Path(folder)
    with library_errors(f"tokenizer.json of {folder}", "name another folder, or copy or train it again"):
        return AutoTokenizer.from_pretrained(path.resolve(strict=True))
