"""Quantization by the libraries: int8 and NF4 by bitsandbytes, int4 by torchao, each an argument of `from_pretrained`.

GPTQ and AWQ need libraries with GPU kernels and their own builds of torch; levels 2 and 3 compute them by hand.

    v1 quantize --model sft --scheme int8 --out sft-int8
"""

from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from shared_data.model_files.config import ModelConfig
from shared_data.model_files.folder import read_config
from shared_data.quantization.layers import choose_group_size
from shared_data.settings import AdapterSettings
from v1_quick.models.peft.qlora import nf4_config

SCHEMES = ("int8", "int4", "nf4")


def quantize_model(
    model: PreTrainedModel, scheme: str, calibration: Any = None, group_size: int | None = None
) -> PreTrainedModel:
    """A quantized copy of the model; none of these schemes looks at the calibration."""
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = quantization_config(scheme, read_config(folder), group_size)
        return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32)


def quantization_config(
    scheme: str, config: ModelConfig, group_size: int | None
) -> BitsAndBytesConfig | TorchAoConfig:
    """How the libraries are asked for a scheme; raises `UserError` for sizes that do not fit."""
    if scheme == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if scheme == "nf4":
        return nf4_config(AdapterSettings(bnb_4bit_use_double_quant=False), config)
    # torchao takes seconds to import.
    from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerGroup

    groups = PerGroup(choose_group_size(config, group_size))
    int4: Any = torch.int4  # type: ignore[attr-defined]
    return TorchAoConfig(IntxWeightOnlyConfig(int4, groups, MappingType.ASYMMETRIC))
