"""The families of models: how their `config.json` is written, and what each is made of. Adding one is an entry of this table.

A family is a class of transformers. Its entry (family_entries.py) says what `ModelConfig`'s fields are called in its `config.json`, what the library assumes
where that file is silent, and which of the fields the architecture itself decides. The blocks of levels 2 and 3 never ask for the family:
they read the fields.

    uv run python -c "from shared_data.model_files.families import *; print(*FAMILIES)"
"""

from shared_data.model_files.family_entries import (
    DECODER,
    DEEPSEEK,
    DEEPSEEK_DEFAULTS,
    EXPERTS,
    HEADS,
    LLAMA_DEFAULTS,
    MISTRAL_SIZES,
    QWEN_SIZES,
    TOKENS,
    WINDOWS,
    Family,
    same,
)

FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        architecture="GPT2LMHeadModel",
        names=TOKENS
        | same("layer_norm_epsilon", "embd_pdrop", "resid_pdrop")
        | {
            "hidden_size": "n_embd",
            "intermediate_size": "n_inner",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
            "hidden_act": "activation_function",
            "attention_dropout": "attn_pdrop",
        },
        defaults={
            "vocab_size": 50257,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 1024,
            "embd_pdrop": 0.1,
            "attention_dropout": 0.1,
            "resid_pdrop": 0.1,
            "bos_token_id": 50256,
            "eos_token_id": 50256,
        },
        blocks={"attention_bias": True, "mlp_bias": True},
        activations=("gelu_new", "gelu"),
        only={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
    ),
    "llama": Family(
        architecture="LlamaForCausalLM",
        names=HEADS | same("attention_bias", "mlp_bias"),
        defaults=LLAMA_DEFAULTS,
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        names=HEADS | same("sliding_window"),
        defaults=MISTRAL_SIZES | {"rms_norm_eps": 1e-6, "sliding_window": 4096},
        layer_types=WINDOWS,
        window="all",
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        names=HEADS | same("sliding_window", "layer_types"),
        defaults=QWEN_SIZES | {"sliding_window": 4096},
        blocks={"attention_bias": True, "attention_output_bias": False},
        layer_types=WINDOWS,
        window="listed",
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        names=HEADS | same("attention_bias", "sliding_window", "layer_types"),
        defaults=QWEN_SIZES | {"sliding_window": 4096, "head_dim": 128},
        blocks={"qk_norm": True},
        layer_types=WINDOWS,
        window="listed",
    ),
    "smollm3": Family(
        architecture="SmolLM3ForCausalLM",
        names=HEADS | same("attention_bias", "mlp_bias", "sliding_window", "layer_types", "no_rope_layers"),
        defaults={
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_theta": 2_000_000.0,
            "bos_token_id": 128000,
            "eos_token_id": 128001,
        },
        layer_types=WINDOWS,
        window="listed",
    ),
    "gemma2": Family(
        architecture="Gemma2ForCausalLM",
        names={name: theirs for name, theirs in HEADS.items() if name != "hidden_act"}
        | {"hidden_act": "hidden_activation"}
        | same("attention_bias", "sliding_window", "layer_types", "query_pre_attn_scalar")
        | same("attn_logit_softcapping", "final_logit_softcapping"),
        defaults={
            "vocab_size": 256000,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "bos_token_id": 2,
            "eos_token_id": 1,
        },
        blocks={"post_norms": True, "norm_offset": True, "scale_embeddings": True},
        activations=("gelu_new",),
        layer_types=WINDOWS,
        window="alternating",
        only={"hidden_act": "gelu_pytorch_tanh", "use_bidirectional_attention": None},
    ),
    "mixtral": Family(
        architecture="MixtralForCausalLM",
        names=HEADS | EXPERTS | same("sliding_window", "num_local_experts"),
        defaults=MISTRAL_SIZES
        | {"rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 2, "rope_theta": 1e6},
        blocks={"norm_topk_prob": True},
        layer_types=WINDOWS,
        window="all",
        only={"router_jitter_noise": 0.0},
    ),
    "qwen3_moe": Family(
        architecture="Qwen3MoeForCausalLM",
        names=HEADS
        | EXPERTS
        | same("attention_bias", "sliding_window", "moe_intermediate_size", "norm_topk_prob")
        | same("num_local_experts", "mlp_only_layers"),
        defaults=QWEN_SIZES
        | {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 24,
            "num_key_value_heads": 4,
            "sliding_window": 4096,
            "moe_intermediate_size": 768,
            "num_local_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": False,
        },
        blocks={"qk_norm": True},
        layer_types=WINDOWS,
        window="all",
    ),
    "gpt_oss": Family(
        architecture="GptOssForCausalLM",
        names=HEADS
        | EXPERTS
        | same("attention_bias", "sliding_window", "layer_types")
        | same("num_local_experts", "swiglu_alpha", "swiglu_limit"),
        defaults={
            "vocab_size": 201088,
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_hidden_layers": 36,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 150_000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            },
            "tie_word_embeddings": False,
            "attention_bias": True,
            "sliding_window": 128,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
        },
        blocks={"attention_sinks": True, "clamped_experts": True},
        layer_types=WINDOWS,
        window="alternating",
    ),
    "deepseek_v3": Family(
        architecture="DeepseekV3ForCausalLM",
        names=DEEPSEEK,
        defaults=DEEPSEEK_DEFAULTS,
        blocks={"scoring_func": "sigmoid"},
        only={
            "rope_interleave": True,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "moe_layer_freq": 1,
        },
    ),
    "deepseek_v32": Family(
        architecture="DeepseekV32ForCausalLM",
        names=DEEPSEEK | same("index_topk", "index_n_heads", "index_head_dim", "layer_types"),
        defaults=DEEPSEEK_DEFAULTS
        | {
            "max_position_embeddings": 163840,
            "index_topk": 2048,
            "index_n_heads": 64,
            "index_head_dim": 128,
        },
        blocks={"scoring_func": "sigmoid"},
        layer_types=("indexed_attention",),
        only={"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1, "mlp_bias": False},
        has_classifier=False,
    ),
    # Ours: Llama with kinds of attention that transformers lacks. It refuses the name, where it would else attend to everything.
    "sparse_llama": Family(
        architecture="SparseLlamaForCausalLM",
        names=HEADS
        | same("attention_bias", "mlp_bias", "layer_types", "sliding_window", "attention_chunk_size")
        | same("attention_stride", "num_sink_tokens", "index_topk", "index_n_heads", "index_head_dim"),
        defaults=LLAMA_DEFAULTS,
        layer_types=(*WINDOWS, "chunked_attention", "strided_attention", "indexed_attention"),
        window="listed",
        in_library=False,
    ),
}

# The fields that only some families have; what is derived from others is not among them.
CHOICES = frozenset(name for family in FAMILIES.values() for name in family.names) - frozenset(
    {*DECODER, *FAMILIES["gpt2"].names, "head_dim", "layer_types", "moe_intermediate_size"}
)
