"""Hugging Face folders in and out: `config.json`, `model.safetensors` (or shards with an index), the tokenizer's files.

Everything is checked before anything is built: the architecture, the name and the shape of every tensor. What we save,
`AutoModelForCausalLM.from_pretrained(folder)` loads; what transformers saves of GPT-2 and Llama, we load. No pickle is
read or written (safetensors is a JSON header and the raw numbers).

Level 1: `save_pretrained` and `from_pretrained`. Level 3: the same functions over NumPy.

    python -c "from v2_handwritten.models.checkpoint import load_model; print(load_model('runs/v2/tiny/pretrain').config)"
"""

from pathlib import Path

import torch

from v2_handwritten.models.transformer import Transformer


def save_model(model: Transformer, folder: Path, tokenizer_folder: Path | None = None) -> None:
    """Write the model as a Hugging Face folder, with a copy of the tokenizer's files."""


def load_model(
    folder: Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> Transformer:
    """Read a Hugging Face folder of a GPT-2 or Llama model. `dtype` None keeps the checkpoint's own type."""
