"""Models for inference: of a run's stage or of any Hugging Face folder, plain or an adapter, with the tokenizer beside them.

model, tokenizer = load_with_tokenizer(settings, run, "sft")
"""

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from shared_data.device import resolve_device
from shared_data.evaluation.held_out import check_vocabulary
from shared_data.model_files.folder import read_config
from shared_data.model_files.gguf import is_gguf
from shared_data.model_names import find_model, starting_model
from shared_data.peft.adapter_files import base_of_adapter
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v1_quick.data_pipeline.tokenizer.tokenizer import load_tokenizer
from v1_quick.models.checkpoint import dequantized, load_model, merge_adapter, model_options


def load_for_inference(settings: Settings, folder: Path) -> PreTrainedModel:
    """The model of a folder on the settings' device; an adapter is loaded with its base and merged into it."""
    base, device = base_of_adapter(folder), resolve_device(settings.device)
    model = load_model(base or folder, "auto" if device.type == "cuda" else torch.float32).to(device)
    return (merge_adapter(model, folder) if base else model).eval()


def load_to_train(
    settings: Settings, run: RunFolder, stage: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model that a stage trains further, in float32 whatever its files have, and its tokenizer."""
    model = load_model(folder_to_train(settings, run, stage), **model_options(settings))
    tokenizer = load_tokenizer(starting_model(run, stage).tokenizer)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # batches need one
    return model, tokenizer


def folder_to_train(settings: Settings, run: RunFolder, stage: str) -> Path:
    """The folder of that model. Trainers read it again for the reference, so what is no plain folder becomes one first."""
    start = starting_model(run, stage).folder
    model = base_of_adapter(start) or start
    quantized = not is_gguf(model) and read_config(model).quantization is not None
    if not is_gguf(start) and not base_of_adapter(start) and not quantized:
        return start
    folder = run.stage(stage) / "start"
    dequantized(load_for_inference(settings, start), start).save_pretrained(folder)
    return folder


def load_with_tokenizer(
    settings: Settings, run: RunFolder, name: str | Path = "pretrain"
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model of that name (`shared_data/model_names.py`) and the tokenizer beside it (default: that of the run)."""
    folder, tokenizer_folder = find_model(run, name)
    model, tokenizer = load_for_inference(settings, folder), load_tokenizer(tokenizer_folder)
    largest_id = max(
        tokenizer.get_vocab().values()
    )  # more than `len(tokenizer)` where the vocabulary has holes
    check_vocabulary(folder, model.config.vocab_size, tokenizer_folder, largest_id + 1)
    return model, tokenizer
