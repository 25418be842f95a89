"""The command `quantize`: bitsandbytes and torchao, and the steps around them (shared_data/quantization/command.py).

v1 quantize --model sft --scheme nf4 --out sft-nf4
"""

from pathlib import Path
from typing import Any

from shared_data.model_files.folder import copy_tokenizer
from shared_data.quantization.command import Functions, Request, quantize_folder
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v1_quick.inference.generate import generate
from v1_quick.inference.loading import load_for_inference, load_with_tokenizer
from v1_quick.inference.scoring import negative_log_probs
from v1_quick.models.quantize import SCHEMES, quantize_model


def quantize_command(settings: Settings, run: RunFolder, request: Request) -> None:
    """Write the quantized model; raises `UserError` for what cannot be done."""
    load = (load_for_inference, load_with_tokenizer)
    level = Functions(SCHEMES, *load, quantize_model, save, generate, negative_log_probs)
    quantize_folder(settings, run, request, level)


def save(model: Any, folder: Path, tokenizer_folder: Path) -> None:
    """The model as the library saves it, and the tokenizer's files."""
    model.save_pretrained(folder)
    copy_tokenizer(tokenizer_folder, folder)
