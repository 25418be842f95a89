"""Hugging Face folders and GGUF files in: `from_pretrained` of transformers. Out: `save_pretrained`, which the trainers call.

uv run python -c "from v1_quick import load_model; print(load_model('runs/v1/tiny/pretrain'))"
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from shared_data.errors import library_errors
from shared_data.model_files.folder import find_tensors, read_config
from shared_data.model_files.gguf import is_gguf
from shared_data.model_files.initialization import parameter_shapes
from shared_data.peft.adapter_schema import chosen_modules
from shared_data.settings import Settings
from v1_quick.models.peft.qlora import check_widths


def load_model(
    folder: Path | str, dtype: torch.dtype | str = torch.float32, **options: Any
) -> PreTrainedModel:
    """The language model of a folder or a GGUF file, ready to generate.

    The library would fill missing tensors with random numbers. Raises `UserError` where one is missing or of another shape, and where the
    library cannot read the folder. Of a GGUF file the library leaves out end tokens, biases and rope scaling, so it gets our configuration.
    """
    folder = Path(folder)
    config = read_config(folder)
    if config.quantization is not None:
        config.quantization.check_readable(("int8", "nf4", "torchao"), "use level 2 or 3")
        if config.quantization.format == "nf4":
            check_widths(config)
    if config.quantization is None or config.quantization.format != "torchao":
        find_tensors(folder, config, parameter_shapes(config))
    with library_errors(str(folder), "correct what it names, or copy it again"):
        if not is_gguf(folder):
            return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
        # What the library has loaded from such a file, it neither trains nor saves: the weights go into a new model.
        theirs = AutoConfig.for_model(**config.to_hf())
        file = {"gguf_file": folder.name, "config": theirs, "dtype": torch.float32}
        read = AutoModelForCausalLM.from_pretrained(folder.parent, **file)
        model = AutoModelForCausalLM.from_config(theirs, dtype=torch.float32, **options)
        model.load_state_dict(read.state_dict())
        return model.eval()


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model, decoded if it is quantized, with the adapter of a folder merged into it; raises `UserError` where PEFT cannot load that."""
    from peft import PeftConfig, PeftModel  # takes seconds

    model, file = dequantized(model, folder), folder / "adapter_config.json"
    with library_errors(str(folder), "load it on the model that it was trained on, or copy it again"):
        config = PeftConfig.from_pretrained(str(folder))
        targets = config.target_modules
        if isinstance(targets, str) and targets != "all-linear":  # the library's own match has no time limit
            config.target_modules = chosen_modules(targets, dict(model.named_modules()), file)
        return PeftModel.from_pretrained(model, str(folder), config=config).merge_and_unload()


def dequantized(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model of that folder with its weights decoded, where they are quantized; raises `UserError` where the library cannot do that."""
    if not getattr(model, "is_quantized", False):
        return model
    with library_errors(str(folder), "use the model before it was quantized"):
        decoded = model.dequantize()
    # What the library has loaded quantized, it does not save: the weights go into a new model.
    plain = AutoModelForCausalLM.from_config(decoded.config, dtype=torch.float32)
    plain.load_state_dict(decoded.state_dict())
    return plain.eval()


def model_options(settings: Settings) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a model that is trained: weights in float32, and the plain attention where it is wanted, else the library's choice."""
    options: dict[str, Any] = {"dtype": torch.float32}
    return options | ({"attn_implementation": "eager"} if settings.kernels == "plain" else {})
