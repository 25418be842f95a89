"""Small models of both families for parity tests: one of each kind of difference, and batches for them."""

from typing import Any

import numpy as np
import torch

from shared_data.model_files.config import ModelConfig
from tests.parity.arrays import integers
from v1_quick.models.config import ModelConfig as LibraryConfig
from v1_quick.models.transformer import Transformer as LibraryTransformer
from v2_handwritten.models.transformer import Transformer

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # ten times the usual: every path through the model then carries a visible gradient
    "eos_token_id": 3,
}
CASES: dict[str, dict[str, Any]] = {
    "gpt2": _SMALL | {"model_type": "gpt2"},
    "gpt2 untied, exact gelu": _SMALL
    | {"model_type": "gpt2", "tie_word_embeddings": False, "hidden_act": "gelu"},
    "llama MHA, untied": _SMALL | {"tie_word_embeddings": False},
    "llama GQA": _SMALL | {"num_key_value_heads": 2},
    "llama MQA, biases, D > C/H": _SMALL
    | {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "head_dim": 12},
    "llama GQA, llama3 rope": _SMALL | {"num_key_value_heads": 2, "rope_scaling": LLAMA3_SCALING},
    "llama GQA, linear rope": _SMALL
    | {
        "num_key_value_heads": 2,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "rope_theta": 500_000.0,
    },
}


def config_of(case: str) -> ModelConfig:
    """The configuration of a case."""
    return ModelConfig(**CASES[case])


def pair(case: str, dtype: torch.dtype = torch.float64) -> tuple[Transformer, LibraryTransformer]:
    """Level 2's and level 1's model with the same weights; norms and biases are moved off 1 and 0."""
    config = config_of(case)
    library = LibraryTransformer(LibraryConfig.from_hf(config.to_hf())).initialize(0).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in library.parameters():
            if parameter.ndim == 1:
                parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * 0.1
    ours = Transformer(config).to(dtype)
    ours.load_state_dict(library.library.state_dict())
    return ours, library


def batch(case: str, B: int = 2, T: int = 70) -> dict[str, torch.Tensor]:
    """Token ids and labels, some of which do not count. T is longer than a tile of the attention kernel."""
    V = CASES[case]["vocab_size"]
    labels = torch.from_numpy(integers(2, V, B, T))
    labels[0, :5] = -100
    return {"input_ids": torch.from_numpy(integers(1, V, B, T)), "labels": labels}


def packed(lengths: list[list[int]]) -> dict[str, torch.Tensor]:
    """Document and position ids of rows that hold documents of the given lengths."""
    documents = [np.repeat(np.arange(len(row)), row) for row in lengths]
    positions = [np.concatenate([np.arange(length) for length in row]) for row in lengths]
    return {
        "document_ids": torch.from_numpy(np.stack(documents).astype(np.int64)),
        "position_ids": torch.from_numpy(np.stack(positions).astype(np.int64)),
    }


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gradients by Hugging Face name; of a library wrapper, those of the library's model."""
    inner = getattr(model, "library", model)
    found = {name: parameter.grad for name, parameter in inner.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient for name, gradient in found.items() if gradient is not None}
