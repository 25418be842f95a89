"""Whether a checkpoint fits the settings of a run and its tokenizer, before anything is trained from it.

check_same_vocabulary(folder, config.vocab_size, run.tokenizer, tokenizer.vocab_size)
"""

from pathlib import Path
from typing import Any

from shared_data.errors import UserError
from shared_data.files import read_json

_SIZES = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "tie_word_embeddings",
)


def check_same_vocabulary(folder: Path, model_size: int, tokenizer: Path, vocab_size: int) -> None:
    """The tokens must mean what they meant to the checkpoint: same entries where it has a tokenizer, same number else."""
    own = folder / "tokenizer.json"
    if own.is_file():
        same = read_json(own)["model"]["vocab"] == read_json(tokenizer)["model"]["vocab"]
        same = same and model_size >= vocab_size
    else:
        same = model_size == vocab_size
    if not same:
        raise UserError(
            f"{folder} was trained with another tokenizer than {tokenizer}; start from that tokenizer with "
            f"--set tokenizer.load={folder}, or leave pretrain.init_from out"
        )


def check_same_architecture(folder: Path, checkpoint: Any, settings: Any) -> None:
    """Raise `UserError` for the first size in which the checkpoint's configuration and `[model]` differ."""
    for name in _SIZES:
        found, expected = getattr(checkpoint, name), getattr(settings, name)
        if found != expected:
            raise UserError(
                f"{folder} has {name} {found}, the settings have {expected}; use --set model.{name}={str(found).lower()}"
            )
