"""The command `quantize`: this level's functions for the steps of shared_data/quantization/command.py.

Level 1: bitsandbytes and torchao. Level 2: the same over torch.

    v3 quantize --model sft --scheme gptq --out sft-gptq
"""

from typing import Any

from shared_data.quantization.command import Functions, Request, quantize_folder
from shared_data.quantization.config import SCHEMES
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v3_numpy_deep.inference.generate import generate
from v3_numpy_deep.inference.loading import load_for_inference, load_with_tokenizer
from v3_numpy_deep.inference.scoring import negative_log_probs
from v3_numpy_deep.models.checkpoint import save_model
from v3_numpy_deep.models.quantization.quantize import quantize_model


def quantize_command(settings: Settings, run: RunFolder, request: Request) -> None:
    """Write the quantized model; raises `UserError` for what cannot be done."""
    load = (load_for_inference, load_with_tokenizer)
    level = Functions(SCHEMES, *load, quantize, save_model, generate, negative_log_probs)
    quantize_folder(settings, run, request, level)


def quantize(model: Any, scheme: str, calibration: Any, group_size: int | None) -> Any:
    """The model, quantized; `calibration` is an array of token ids."""
    return quantize_model(model, scheme, calibration, group_size)
