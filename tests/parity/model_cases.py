"""Small models of both families for parity tests: one of each kind of difference, and batches for them."""

from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from shared_data.model_files.config import ModelConfig
from shared_data.model_files.initialization import initial_weights
from tests.parity.arrays import integers
from v2_handwritten.models.packing import Packing
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


class LibraryModel(torch.nn.Module):
    """transformers' model (`library`) with our arguments."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = library_config(config)
        self.library = AutoModelForCausalLM.from_config(self.config)
        parameters = dict(self.library.named_parameters())
        with torch.no_grad():
            for name, weight in initial_weights(config, 0):
                parameters[name].copy_(torch.from_numpy(weight))

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        packing: Packing | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits. Where positions restart with each document, the library finds the packing by itself."""
        if packing is not None:
            attention_mask = packing.same_text().tril().unsqueeze(1)
        # Without use_cache=False the library makes a cache in training too, and then no longer notices packed positions.
        output = self.library(
            input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=False
        )
        return output.logits

    def loss(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        packing: Packing | None = None,
    ) -> torch.Tensor:
        """Mean cross-entropy in nats."""
        return cross_entropy(self(input_ids, position_ids, packing).flatten(0, 1), labels.flatten())


def config_of(case: str) -> ModelConfig:
    """The configuration of a case."""
    return ModelConfig(**CASES[case])


def library_config(config: ModelConfig) -> PreTrainedConfig:
    """transformers' `GPT2Config` or `LlamaConfig`."""
    return AutoConfig.for_model(**config.to_hf())


def pair(case: str, dtype: torch.dtype = torch.float64) -> tuple[Transformer, LibraryModel]:
    """Level 2's and the library's model with the same weights; norms and biases are not 1 and 0."""
    config = config_of(case)
    library = LibraryModel(config).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in library.parameters():
            if parameter.ndim == 1:
                parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * 0.1
    ours = Transformer(config).to(dtype)
    ours.load_state_dict(library.library.state_dict())
    return ours, library


def batch(case: str, B: int = 2, T: int = 70) -> dict[str, torch.Tensor]:
    """Token ids and labels, some of which do not count."""
    V = CASES[case]["vocab_size"]
    labels = torch.from_numpy(integers(2, V, B, T))
    labels[0, :5] = -100
    return {"input_ids": torch.from_numpy(integers(1, V, B, T)), "labels": labels}


def packed(lengths: list[list[int]]) -> dict[str, Any]:
    """`packing` and `position_ids` of rows that hold documents of the given lengths."""
    documents = [np.repeat(np.arange(len(row)), row) for row in lengths]
    positions = [np.concatenate([np.arange(length) for length in row]) for row in lengths]
    return {
        "packing": Packing.from_documents(torch.from_numpy(np.stack(documents).astype(np.int64))),
        "position_ids": torch.from_numpy(np.stack(positions).astype(np.int64)),
    }


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gradients by Hugging Face name; of a library wrapper, those of the library's model."""
    inner = getattr(model, "library", model)
    found = {name: parameter.grad for name, parameter in inner.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient for name, gradient in found.items() if gradient is not None}
