"""What an entry of the table of families (families.py) says, and the names and sizes that several of them have in common.

uv run python -c "from shared_data.model_files.family_entries import *; print(*HEADS)"
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """One architecture, by the fields of `ModelConfig`.

    names: field → its name in config.json. defaults: what the library assumes where config.json is silent. blocks: what the architecture
    decides; no config.json has it. layer_types: the kinds of attention that a layer can have. only: entries of a config.json that are
    understood with this one value. window: whether `sliding_window` holds for "all" layers, for those that `layer_types` names ("listed"), or, where
    it names none, for every other one ("alternating").
    in_library, has_classifier: whether transformers has it, and a sequence classifier of it, which a reward model is.
    """

    architecture: str
    names: Mapping[str, str]
    defaults: Mapping[str, Any]
    blocks: Mapping[str, Any] = field(default_factory=dict)
    activations: tuple[str, ...] = ("silu",)
    layer_types: tuple[str, ...] = ("full_attention",)
    window: str = "none"
    only: Mapping[str, Any] = field(default_factory=dict)
    in_library: bool = True
    has_classifier: bool = True

    def has(self, name: str) -> bool:
        """Whether models of this family have a choice."""
        return name in self.names or name in self.blocks

    @property
    def classifier(self) -> str:
        """The library's class of a reward model."""
        return f"{self.architecture.removesuffix('LMHeadModel').removesuffix('ForCausalLM')}ForSequenceClassification"


def same(*names: str) -> dict[str, str]:
    """Fields that are called the same in config.json."""
    return {name: name for name in names}


TOKENS = same("vocab_size", "tie_word_embeddings", "initializer_range", "bos_token_id", "eos_token_id")
DECODER = TOKENS | same(
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "attention_dropout",
    "hidden_act",
)
HEADS = DECODER | same("head_dim")
EXPERTS = same("num_experts_per_tok", "router_aux_loss_coef", "output_router_logits")
WINDOWS = ("full_attention", "sliding_attention")
LATENT = same("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
DEEPSEEK = (
    DECODER
    | LATENT
    | same("num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "n_shared_experts", "n_group")
    | same("topk_group", "routed_scaling_factor", "mlp_only_layers", "attention_bias")
    | {"num_local_experts": "n_routed_experts"}
)
QWEN_SIZES = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
MISTRAL_SIZES = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DEEPSEEK_DEFAULTS = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_shared_experts": 1,
    "num_local_experts": 256,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "mlp_only_layers": [0, 1, 2],
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
