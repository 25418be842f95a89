"""The architecture: transformers' `GPT2Config` or `LlamaConfig`, filled in from our settings.

Levels 2 and 3 hold one dataclass for both families and count parameters and operations by formula; here the library's
model, built without memory, is asked.

    python -c "from v1_quick.models.config import *; from shared_data.settings import ModelSettings; print(count_parameters(ModelConfig.from_settings(ModelSettings(), 1024)))"
"""

import math
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig

from shared_data.errors import UserError
from shared_data.settings import ModelSettings


class ModelConfig:
    """Makes library configurations; a folder of three constructors, never an instance."""

    @classmethod
    def from_settings(
        cls, settings: ModelSettings, vocab_size: int, eos_token_id: int | None = None
    ) -> PreTrainedConfig:
        """The architecture that `[model]` of a configuration asks for; the vocabulary comes from the tokenizer."""
        shared = {
            "vocab_size": vocab_size,
            "max_position_embeddings": settings.max_position_embeddings,
            "hidden_size": settings.hidden_size,
            "num_hidden_layers": settings.num_hidden_layers,
            "num_attention_heads": settings.num_attention_heads,
            "tie_word_embeddings": settings.tie_word_embeddings,
            "initializer_range": settings.initializer_range,
            "bos_token_id": eos_token_id,
            "eos_token_id": eos_token_id,
        }
        if settings.model_type == "gpt2":
            return GPT2Config(
                **shared,
                n_inner=settings.intermediate_size or 4 * settings.hidden_size,
                layer_norm_epsilon=settings.layer_norm_epsilon,
                embd_pdrop=settings.dropout,
                attn_pdrop=settings.dropout,
                resid_pdrop=settings.dropout,
            )
        return LlamaConfig(
            **shared,
            intermediate_size=settings.intermediate_size or 32 * math.ceil(8 * settings.hidden_size / 3 / 32),
            num_key_value_heads=settings.num_key_value_heads,
            head_dim=settings.head_dim,
            rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
            rms_norm_eps=settings.rms_norm_eps,
            attention_dropout=settings.dropout,
        )

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> PreTrainedConfig:
        """Read the contents of a Hugging Face `config.json`. Raises `UserError` for another architecture."""
        classes = {"gpt2": GPT2Config, "llama": LlamaConfig}
        if config.get("model_type") not in classes:
            raise UserError(
                f"config.json describes a model of type {config.get('model_type')!r}; only 'gpt2' and 'llama' checkpoints are supported"
            )
        return classes[config["model_type"]].from_dict(config)


def count_parameters(config: PreTrainedConfig) -> int:
    """Numbers that training adjusts; a tied output matrix counts once."""
    with torch.device("meta"):  # shapes without memory
        return AutoModelForCausalLM.from_config(config).num_parameters()


def flops_per_token(config: PreTrainedConfig, sequence_length: int) -> int:
    """Floating-point operations of one training token, forward and backward: 6 N + 12 · layers · H · D · T."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    # Every matrix takes part in a product, except the embeddings that are only looked up.
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    positions = config.n_positions * config.hidden_size if config.model_type == "gpt2" else 0
    look_ups = 0 if config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = config.num_hidden_layers * config.num_attention_heads * head_dim * sequence_length
    return 6 * (matrices - positions - look_ups) + 12 * attention
