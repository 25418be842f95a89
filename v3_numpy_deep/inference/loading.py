"""Models for inference: of a run's stage or of any Hugging Face folder, plain or an adapter, with the tokenizer beside them.

model, tokenizer = load_with_tokenizer(settings, run, "sft")
"""

from dataclasses import replace
from pathlib import Path

from shared_data.evaluation.held_out import check_vocabulary
from shared_data.inference.prompts import stop_ids
from shared_data.model_names import find_model, starting_model
from shared_data.peft.adapter_files import base_of_adapter
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer, load_tokenizer
from v3_numpy_deep.models.checkpoint import load_model
from v3_numpy_deep.models.peft.adapters import load_adapter, merged_model
from v3_numpy_deep.models.transformer import Transformer


def load_for_inference(settings: Settings, folder: Path) -> Transformer:
    """The model of a folder; an adapter is loaded with its base and merged into it."""
    base = base_of_adapter(folder)
    model = load_model(base or folder, kernels=settings.kernels)
    if base:
        load_adapter(model, folder)
        model = merged_model(model)
    return model.eval()


def load_to_train(settings: Settings, run: RunFolder, stage: str) -> tuple[Transformer, Tokenizer]:
    """The model that a stage trains further, and its tokenizer.

    It stops where its template ends a turn, too. Quantized weights are decoded, and train as any others. Raises `UserError` where either is missing or damaged, or they do not belong together.
    """
    start = starting_model(run, stage)
    model = load_for_inference(settings, start.folder)
    model = merged_model(model).eval() if model.config.quantization else model
    tokenizer = load_tokenizer(start.tokenizer)
    tokenizer.ensure_chat_template()
    check_vocabulary(start.folder, model.config.vocab_size, start.tokenizer, tokenizer.vocab_size)
    if tokenizer.chat_template is not None:
        model.config = replace(model.config, eos_token_id=stop_ids(model, tokenizer))
    return model, tokenizer


def load_with_tokenizer(
    settings: Settings, run: RunFolder, name: str | Path = "pretrain"
) -> tuple[Transformer, Tokenizer]:
    """The model of that name (`shared_data/model_names.py`) and the tokenizer beside it (default: that of the run).

    Raises `UserError` where either is missing or damaged, or they do not belong together.
    """
    folder, tokenizer_folder = find_model(run, name)
    model, tokenizer = load_for_inference(settings, folder), load_tokenizer(tokenizer_folder)
    check_vocabulary(folder, model.config.vocab_size, tokenizer_folder, tokenizer.vocab_size)
    return model, tokenizer
