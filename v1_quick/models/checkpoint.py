"""Hugging Face folders in and out: `save_pretrained` and `from_pretrained`.

python -c "from v1_quick.models.checkpoint import load_model; print(load_model('runs/v1/tiny/pretrain').config)"
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from shared_data.errors import UserError
from shared_data.files import read_json
from v1_quick.models.config import ModelConfig
from v1_quick.models.transformer import Transformer


def save_model(model: Transformer, folder: Path, tokenizer_folder: Path | None = None) -> None:
    """Write the model as a Hugging Face folder, with a copy of the tokenizer's files."""
    with _quiet():
        model.library.save_pretrained(folder)
    if tokenizer_folder is not None:
        for path in sorted(Path(tokenizer_folder).glob("tokenizer*.json")):
            shutil.copy2(path, folder)


def load_model(
    folder: Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> Transformer:
    """Read a Hugging Face folder of a GPT-2 or Llama model. `dtype` None keeps the checkpoint's own type."""
    config = ModelConfig.from_hf(read_json(Path(folder) / "config.json"))
    try:
        with _quiet():
            library, report = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype or "auto", output_loading_info=True, ignore_mismatched_sizes=True
            )
    except Exception as error:  # the library raises many kinds: missing file, corrupt header, wrong shape
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{folder} has no model.safetensors of a {config.model_type} model that could be read ({reason}); copy it again"
        ) from error
    misshapen = sorted(report["mismatched_keys"])
    if misshapen:
        name, theirs, ours = misshapen[0]
        raise UserError(
            f"{folder / 'model.safetensors'}: {name} has shape {list(theirs)}, config.json asks for {list(ours)}; copy both from one place"
        )
    absent = sorted(report["missing_keys"])
    if absent:  # the library would go on with random numbers in their place
        raise UserError(
            f"{folder / 'model.safetensors'} lacks the tensor {absent[0]}; it is not a whole {config.model_type} checkpoint: copy it again"
        )
    model = Transformer(library.config, library=library)
    return model.to(device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's report and bars on the terminal: what is wrong becomes one line of ours."""
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
