"""Hugging Face folders in and out: `save_pretrained` and `from_pretrained`.

python -c "from v1_quick.models.checkpoint import load_model; print(load_model('runs/v1/tiny/pretrain').config)"
"""

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from shared_data.errors import UserError
from shared_data.files import read_json
from v1_quick.models.config import ModelConfig
from v1_quick.models.transformer import Transformer


def save_model(model: Transformer, folder: Path, tokenizer_folder: Path | None = None) -> None:
    """Write the model as a Hugging Face folder, with a copy of the tokenizer's files."""
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
        library, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or "auto", output_loading_info=True
        )
    except Exception as error:  # the library raises many kinds: missing file, corrupt header, wrong shape
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{folder} does not hold a readable {config.model_type} model ({reason}); copy it again"
        ) from error
    absent = sorted(report["missing_keys"])
    if absent:  # the library would go on with random numbers in their place
        raise UserError(
            f"{folder} lacks the tensor {absent[0]}; it is not a whole {config.model_type} checkpoint: copy it again"
        )
    model = Transformer(library.config, library=library)
    return model.to(device)
