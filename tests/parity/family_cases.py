"""A small model of each family, and of each of its choices, as transformers builds it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from shared_data.model_files.config import ModelConfig
from shared_data.model_files.families import FAMILIES
from shared_data.model_files.initialization import initial_weights
from tests.parity.arrays import integers

V, B, T = 96, 2, 40
_SMALL: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # ten times the usual: every path through the model then carries a visible gradient
    "eos_token_id": 3,
}
_SHORT = _SMALL | {"num_hidden_layers": 2, "num_key_value_heads": 2}
_GROUPED = _SMALL | {"num_key_value_heads": 2}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_WINDOW = {"sliding_window": 9}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"]}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "moe_intermediate_size": 20,
    "mlp_only_layers": [0],
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
}
# With fewer heads some keys match none of them: their scores are all 0, and which of them are selected is anybody's choice.
_INDEXER = {"index_topk": 8, "index_n_heads": 16, "index_head_dim": 8}


def yarn(**numbers: Any) -> dict[str, Any]:
    """`rope_scaling` of a model that was first trained on 16 tokens."""
    return {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16} | numbers


CASES: dict[str, dict[str, Any]] = {
    "gpt2": _SMALL | {"num_hidden_layers": 2},
    "llama, dynamic rope": _SHORT
    | {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 16},
    "llama, yarn": _SHORT | {"rope_scaling": yarn(), "tie_word_embeddings": False},
    "llama, yarn with mscale": _SHORT
    | {"rope_scaling": yarn(mscale=1.0, mscale_all_dim=0.5, beta_fast=2.0, beta_slow=0.5, truncate=False)},
    "mistral": _SHORT | {"sliding_window": None},
    "mistral, window": _SHORT | _WINDOW | {"head_dim": 12, "tie_word_embeddings": False},
    "qwen2": _SHORT,
    "qwen2, windows": _SHORT | _WINDOW | _MIXED | {"tie_word_embeddings": False},
    "qwen3": _SHORT | {"head_dim": 12},
    "qwen3, windows, biases": _SHORT | _WINDOW | _MIXED | {"attention_bias": True},
    "smollm3": _GROUPED,
    "smollm3, windows, biases": _GROUPED
    | _WINDOW
    | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]}
    | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "gemma2": _SHORT | _WINDOW | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma2, no caps, untied": _SHORT | _WINDOW | {"tie_word_embeddings": False, "attention_bias": True},
    "gemma2, other scale": _SHORT
    | _WINDOW
    | {"head_dim": 12, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0},
    "mixtral": _SHORT | _EXPERTS,
    "mixtral, window": _SHORT | _EXPERTS | _WINDOW | {"tie_word_embeddings": False},
    "qwen3_moe": _GROUPED
    | _EXPERTS
    | {"norm_topk_prob": False, "mlp_only_layers": [1], "moe_intermediate_size": 20},
    "qwen3_moe, window, biases": _SHORT | _EXPERTS | _WINDOW | {"attention_bias": True, "head_dim": 12},
    "gpt_oss": _SHORT | _EXPERTS | _WINDOW | {"attention_bias": True, "swiglu_limit": 0.7},
    "gpt_oss, yarn, untied": _SHORT
    | _EXPERTS
    | _WINDOW
    | {"rope_scaling": yarn(truncate=False), "tie_word_embeddings": False, "head_dim": 12},
    "deepseek_v3": _SHORT | _EXPERTS | _LATENT,
    "deepseek_v3, whole queries": _SHORT | _EXPERTS | _LATENT | {"q_lora_rank": None},
    "deepseek_v3, yarn": _SHORT | _EXPERTS | _LATENT | {"rope_scaling": yarn(mscale=1.0, mscale_all_dim=0.7)},
    "deepseek_v32": _SHORT | _EXPERTS | _LATENT | _INDEXER,
}
each_case = pytest.mark.parametrize("case", CASES)
# Ours alone: transformers has no such class.
LIBRARY_FAMILIES = [name for name in FAMILIES if name != "sparse_llama"]


def config_of(case: str) -> ModelConfig:
    """The configuration of a case."""
    return ModelConfig(model_type=case.split(",")[0], **CASES[case])


def library_model(case: str) -> PreTrainedModel:
    """transformers' model of a case with our initial weights; norms, biases and sinks are not 1 and 0."""
    config = config_of(case)
    # One expert after the other: the library's grouped product exists in float32 and narrower only.
    eager = {"experts_implementation": "eager"} if config.num_local_experts else {}
    library = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config.to_hf()), **eager)
    state, generator = library.state_dict(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in initial_weights(config, 0):
            state[name].copy_(torch.from_numpy(weight))
            if weight.ndim == 1 or name.endswith("bias"):
                state[name].add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return library.train()


def saved(case: str, folder: Path, dtype: torch.dtype = torch.float32, shard: str = "1GB") -> PreTrainedModel:
    """The library's model of a case, which it has saved into a folder."""
    library = library_model(case).to(dtype)
    library.save_pretrained(folder, max_shard_size=shard)
    return library


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, some of which do not count."""
    labels = torch.from_numpy(integers(2, V, B, T))
    labels[0, :5] = -100
    return torch.from_numpy(integers(1, V, B, T)), labels


def library_results(library: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Logits, loss, and all gradients by name, of the library's model on the batch."""
    ids, labels = batch()
    # Without a cache: the library makes one by default in training, too.
    logits = library(ids, use_cache=False).logits
    loss = cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss.backward()
    return {"logits": logits.detach(), "loss": loss.detach()} | {
        name: parameter.grad for name, parameter in library.named_parameters() if parameter.grad is not None
    }
