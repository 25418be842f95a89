"""Sizes and choices that no model can have, each refused in one line with the remedy.

check_config(config)
"""

from dataclasses import MISSING, fields
from typing import Any

from shared_data.errors import UserError
from shared_data.model_files.families import CHOICES, FAMILIES
from shared_data.model_files.rope_scaling import check_rope_scaling


def check_family(config: Any) -> None:
    """Raise `UserError` for a choice that models of this family do not have."""
    for each in fields(config):
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        optional = each.name in CHOICES and getattr(config, each.name) != default
        if optional and not config.family.has(each.name):
            others = [name for name, family in FAMILIES.items() if each.name in family.names]
            remedy = f"use model_type {' or '.join(others)}" if others else "leave it out"
            raise UserError(f"{config.model_type} has no {each.name}; {remedy}")


def check_config(config: Any) -> None:
    """Raise `UserError` with the remedy for sizes or choices that no model can have."""
    heads, groups, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    if config.hidden_size % heads:  # even where head_dim is given, as transformers has it
        raise UserError(
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {heads}; change one of them"
        )
    if heads % groups:
        raise UserError(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}; change one of them"
        )
    if config.kv_lora_rank and groups != heads:
        raise UserError(
            f"latent attention makes a key and a value for each of its {heads} heads, but num_key_value_heads is {groups}; leave it "
            "out (--set model.num_key_value_heads=none)"
        )
    if config.model_type == "gpt2" and (groups != heads or heads * D != config.hidden_size):
        raise UserError(
            "gpt2 has one key-value head per query head and head_dim = hidden_size / heads; use model_type llama"
        )
    if config.model_type == "gpt2" and config.rope_scaling:
        raise UserError(
            "gpt2 learns its positions and has no rope_scaling; leave it out or use model_type llama"
        )
    if config.model_type != "gpt2" and D % 2:
        name = "qk_rope_head_dim" if config.kv_lora_rank else "head_dim"
        raise UserError(f"rotary positions turn pairs, but {name} is {D}; choose an even {name}")
    if config.hidden_act not in config.family.activations:
        raise UserError(
            f"activation {config.hidden_act!r} is not supported for {config.model_type}; "
            f"supported: {', '.join(config.family.activations)}"
        )
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name) == 0:
            raise UserError(f"{name} is 0, which would make everything equal; use a positive number or none")
    check_rope_scaling(config.rope_scaling or {"rope_type": "default"}, D)
    if config.rope_theta <= 1 and config.rope_scaling and config.rope_scaling["rope_type"] == "yarn":
        raise UserError(
            f"rope_theta is {config.rope_theta}, by whose logarithm yarn divides; use one above 1"
        )
    _check_layers(config)
    if config.num_local_experts:
        _check_experts(config)


# The size that each kind of attention needs.
SIZE_OF_KIND = {
    "sliding_attention": "sliding_window",
    "chunked_attention": "attention_chunk_size",
    "strided_attention": "attention_stride",
    "indexed_attention": "index_topk",
}


def _check_layers(config: Any) -> None:
    """One kind of attention for each layer, which the family has, with its size."""
    L, family = config.num_hidden_layers, config.family
    for name in ("layer_types", "no_rope_layers"):
        if len(getattr(config, name)) not in (L, 0):
            raise UserError(
                f"{name} has {len(getattr(config, name))} entries for {L} layers; give one for each layer"
            )
    for kind in dict.fromkeys(config.layer_types):
        if kind not in family.layer_types:
            raise UserError(
                f"{config.model_type} has no layer of the type {kind!r}; it has {', '.join(family.layer_types)}"
            )
        size = SIZE_OF_KIND.get(kind)
        if size is not None and (getattr(config, size) or 0) < 1:
            raise UserError(f"{kind} needs {size}, a positive number; set it")
    if "indexed_attention" in config.layer_types:
        _check_indexer(config)
    if family.window == "all" and config.sliding_window and "full_attention" in config.layer_types:
        raise UserError(
            f"{config.model_type} has a window in all layers or in none; leave out sliding_window or layer_types, or use model_type "
            "qwen3 or sparse_llama"
        )
    if family.window == "all" and len(set(config.layer_types)) > 1:
        raise UserError(
            f"{config.model_type} has one kind of attention in all layers; use model_type qwen3 or sparse_llama"
        )


def _check_indexer(config: Any) -> None:
    """An indexer has heads, which are turned by position as far as those of the attention are."""
    if not config.index_n_heads:
        raise UserError("indexed_attention needs index_n_heads, a positive number; set it")
    if config.index_head_dim < config.head_dim:
        rotated = "qk_rope_head_dim" if config.kv_lora_rank else "head_dim"
        raise UserError(
            f"index_head_dim {config.index_head_dim} is smaller than {rotated} {config.head_dim}, the part of an indexer's head that "
            f"is rotated; raise it to {config.head_dim} or more"
        )


def _check_experts(config: Any) -> None:
    """A token chooses among the experts that there are."""
    E, k = config.num_local_experts, config.num_experts_per_tok
    if (
        "moe_intermediate_size" not in config.family.names
        and config.moe_intermediate_size != config.intermediate_size
    ):
        raise UserError(
            f"the experts of {config.model_type} are intermediate_size wide; leave moe_intermediate_size out"
        )
    if k > E:
        raise UserError(
            f"num_experts_per_tok {k} is more than the {E} experts; lower it or raise num_local_experts"
        )
    if config.scoring_func == "sigmoid":
        groups, chosen = config.n_group, config.topk_group
        if E % groups or chosen > groups or E // groups < 2 or k > chosen * (E // groups):
            raise UserError(
                f"{E} experts in {groups} groups, of which {chosen} are chosen, do not give {k} experts per token; groups are of "
                "equal size, of two or more experts; change n_group, topk_group or num_experts_per_tok"
            )
    dense = config.mlp_only_layers
    if "kv_lora_rank" in config.family.names and dense != list(range(len(dense))):
        raise UserError(
            f"{config.model_type} has its dense layers first, not {dense}; set mlp_only_layers to [0], [0, 1], … or []"
        )
    if any(layer >= config.num_hidden_layers for layer in config.mlp_only_layers):
        raise UserError(
            f"mlp_only_layers {config.mlp_only_layers} names a layer that there is not; correct it"
        )
