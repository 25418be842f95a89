"""Whether a checkpoint fits the settings of a run and its tokenizer, before anything is trained from it.

config = initial_config(Path("runs/v2/tiny/pretrain"), config, run.tokenizer)
"""

from dataclasses import replace
from pathlib import Path

from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.folder import find_tensors, read_config
from shared_data.model_files.initialization import parameter_shapes
from shared_data.tokenizer.tokenizer_file import read_tokenizer, tokenizer_beside


def initial_config(folder: Path, config: ModelConfig, tokenizer: Path) -> ModelConfig:
    """The configuration of the checkpoint that pretraining starts from: its own sizes, with the dropout of the settings.

    Raises `UserError` where the checkpoint has another vocabulary than the tokenizer, or a tensor that is missing, superfluous or of another
    shape.
    """
    source = read_config(folder)
    if source.quantization is not None:
        raise UserError(
            f"{folder} is quantized ({source.quantization.name}); pretraining goes on from the model that it was made from"
        )
    _check_same_vocabulary(folder, source.vocab_size, tokenizer, config.vocab_size)
    find_tensors(folder, source, parameter_shapes(source))
    dropout = {name: getattr(config, name) for name in ("embd_pdrop", "attention_dropout", "resid_pdrop")}
    return replace(source, **dropout)


def _check_same_vocabulary(folder: Path, model_size: int, tokenizer: Path, vocab_size: int) -> None:
    """The tokens must mean what they meant to the checkpoint: same entries where it has a tokenizer, same number else."""
    if tokenizer_beside(folder, tokenizer) == folder:
        theirs, ours = (read_tokenizer(path)[0]["model"]["vocab"] for path in (folder, tokenizer))
        same = theirs == ours
        same = same and model_size >= vocab_size
    else:
        same = model_size == vocab_size
    if not same:
        raise UserError(
            f"{folder} was trained with another tokenizer than {tokenizer}; start from that tokenizer with "
            f"--set tokenizer.load={folder}, or leave pretrain.model_name_or_path out"
        )
