"""The tokenizer of this level: the one that transformers loads, with its own `encode` and `decode`.

python -c "from v1_quick import load_tokenizer; print(load_tokenizer('runs/v1/tiny/tokenizer').encode('a rat'))"
"""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from shared_data.errors import library_errors


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder, or of the folder of a `tokenizer.json`; raises `UserError` where it is missing or damaged."""
    with library_errors(f"the tokenizer {folder}", "name a folder with a tokenizer.json"):
        return AutoTokenizer.from_pretrained(folder if Path(folder).is_dir() else Path(folder).parent)
