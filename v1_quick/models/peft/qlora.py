"""QLoRA's 4-bit base: transformers' `BitsAndBytesConfig`. PEFT puts adapters on such layers as on any other.

model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=nf4_config(settings.sft.adapter, read_config(folder)))
"""

import torch
from transformers import BitsAndBytesConfig

from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from shared_data.settings import AdapterSettings

BLOCK_SIZE = 64  # of bitsandbytes; transformers has no setting for it


def nf4_config(section: AdapterSettings, config: ModelConfig) -> BitsAndBytesConfig:
    """How the base is stored. Raises `UserError` for another block size, and for widths that end inside a block."""
    if section.bnb_4bit_blocksize != BLOCK_SIZE:
        raise UserError(
            f"transformers stores 4-bit weights in blocks of {BLOCK_SIZE}; leave sft.adapter.bnb_4bit_blocksize out, or use level 2"
        )
    check_widths(config)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=section.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=torch.float32,
    )


def check_widths(config: ModelConfig) -> None:
    """Raise `UserError` for layers that bitsandbytes would compute wrongly."""
    if config.hidden_size % BLOCK_SIZE or config.intermediate_size % BLOCK_SIZE:
        raise UserError(
            f"bitsandbytes 0.50 decodes rows that end inside a block of {BLOCK_SIZE} wrongly on a CPU; use sizes that are multiples "
            "of it, or level 2"
        )
