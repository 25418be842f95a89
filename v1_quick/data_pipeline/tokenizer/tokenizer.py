"""The tokenizer of this level: the one that transformers loads, with its own `encode` and `decode`.

Levels 2 and 3 encode and decode by hand (`shared_data/tokenizer/tokenizer.py`). In a notebook:

    tokenizer = load_tokenizer("runs/v1/tiny/sft")
"""

import json
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from shared_data.errors import library_errors
from shared_data.model_files.gguf import is_gguf
from shared_data.tokenizer.chat_template import CHAT_TEMPLATE
from shared_data.tokenizer.tokenizer_file import check_files, read_tokenizer


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder, of the folder of a `tokenizer.json`, or of a GGUF file; raises `UserError` where it is missing or damaged.

    With `gguf_file=`, the library does not know how SmolLM2 cuts text (the two line ends of "\\n\\n1" become two tokens instead of one), so a
    GGUF file's `tokenizer.json` is ours.
    """
    if is_gguf(folder):
        definition, config = read_tokenizer(folder)
        names = ("bos_token", "eos_token", "unk_token", "pad_token", "chat_template")
        options = {name: config[name] for name in names if name in config}
        backend = Tokenizer.from_str(json.dumps(definition))
        return PreTrainedTokenizerFast(tokenizer_object=backend, **options)
    path = Path(folder).parent if Path(folder).suffix == ".json" else Path(folder)
    config = check_files(path)
    with library_errors(f"tokenizer.json of {folder}", "name another folder, or copy or train it again"):
        # For some `model_type` the automatic class cuts text by rules of its own, not by those of the file (Qwen2).
        plain = config.get("tokenizer_class") == "PreTrainedTokenizerFast"
        return (PreTrainedTokenizerFast if plain else AutoTokenizer).from_pretrained(
            path.resolve(strict=True)
        )


def ensure_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """Take our own template where the files have none, if the tokenizer has its tokens."""
    if tokenizer.chat_template is None and {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.get_added_vocab()):
        tokenizer.chat_template = CHAT_TEMPLATE
