"""`config.json` of a model folder, as the fields of `ModelConfig` and back.

What the file says is computed or refused by name: an entry that is neither a field of its family (families.py) nor known to change no
number is an error, unless it is empty. transformers would ignore it.

    uv run python -c "from shared_data.model_files.config_file import *; from shared_data.model_files.families import FAMILIES; print(read_config_json({}, FAMILIES['mistral']))"
"""

import re
from typing import Any

from shared_data.errors import UserError
from shared_data.model_files.families import Family
from shared_data.model_files.rope_scaling import check_rope_scaling, with_original_length
from shared_data.quantization.config import Quantization

_NULLABLE = frozenset(
    {"bos_token_id", "eos_token_id", "sliding_window", "q_lora_rank"}
    | {"attn_logit_softcapping", "final_logit_softcapping"}
)

# Entries that change no number a model computes.
_NEUTRAL = frozenset(
    re.findall(
        r"\w+",
        """
        _attn_implementation _attn_implementation_autoset _name_or_path architectures attn_implementation auto_map
        aux_loss_alpha cache_implementation dtype ep_size experts_per_token finetuning_task gradient_checkpointing
        id2label initial_context_length is_decoder label2id max_window_layers model_type n_ctx no_rope_layer_interval
        num_nextn_predict_layers output_attentions output_hidden_states pad_token_id prefix pretraining_tp
        problem_type qk_head_dim reorder_and_upcast_attn return_dict sep_token_id seq_aux summary_activation
        summary_first_dropout summary_proj_to_labels summary_type summary_use_proj task_specific_params
        tokenizer_class torch_dtype transformers_version unk_token_id use_cache use_sliding_window
        """,
    )
)
# Entries that are read in ways of their own: of all families with rotary positions, with experts, with latent attention.
_READ_APART = frozenset(
    {"partial_rotary_factor", "quantization_config", "rope_parameters", "rope_scaling", "rope_theta"}
)
_EXPERT_ENTRIES = frozenset(
    {
        "decoder_sparse_step",
        "first_k_dense_replace",
        "mlp_layer_types",
        "n_routed_experts",
        "num_experts",
        "num_local_experts",
    }
)
_LATENT_ENTRIES = frozenset({"head_dim"})


def read_config_json(hf: dict[str, Any], family: Family) -> dict[str, Any]:
    """The fields of `ModelConfig` that the contents of a config.json give. Raises `UserError` for what is not supported."""
    _refuse_what_is_not_computed(hf, family)
    values = {ours: hf[theirs] for ours, theirs in family.names.items() if theirs in hf}
    values = dict(family.defaults) | {
        name: value for name, value in values.items() if value is not None or name in _NULLABLE
    }
    if family.architecture != "GPT2LMHeadModel":
        values["rope_theta"], values["rope_scaling"] = _read_rope(hf, family)
    if "num_key_value_heads" in family.names and hf.get("num_key_value_heads", 1) is None:
        values["num_key_value_heads"] = 0  # as many as there are query heads
    if "kv_lora_rank" in family.names:  # what its head_dim says is derived
        values["head_dim"] = values["qk_rope_head_dim"]
    if values.get("hidden_act") == "gelu_pytorch_tanh":  # another name of the same function
        values["hidden_act"] = "gelu_new"
    values |= _read_layers(hf, family, values, values["num_hidden_layers"])
    if hf.get("quantization_config") is not None:
        values["quantization"] = Quantization.from_hf(hf["quantization_config"])
    return values


def _read_layers(hf: dict[str, Any], family: Family, values: dict[str, Any], L: int) -> dict[str, Any]:
    """What differs from layer to layer, for each of L layers."""
    found: dict[str, Any] = {}
    kinds = values.get("layer_types")
    if kinds is not None and len(kinds) not in (0, L):
        raise UserError(
            f"layer_types has {len(kinds)} entries for {L} layers; correct config.json or copy it again"
        )
    if family.window != "none":
        window = values.get("sliding_window")
        if "use_sliding_window" in hf or family.architecture.startswith(("Qwen", "SmolLM3")):
            window = window if hf.get("use_sliding_window") else None
        found["sliding_window"] = window
        if family.window == "all":
            found["layer_types"] = ["full_attention" if window is None else "sliding_attention"] * L
        elif family.window == "alternating":  # `ModelConfig` fills in which layers
            if window is None:
                raise UserError("sliding_attention needs sliding_window, a positive number; set it")
        elif not values.get("layer_types"):
            first = _count(hf, "max_window_layers", 28)  # Qwen: from this layer on
            no_rope = _no_rope_layers(hf, L) if "no_rope_layers" in family.names else []
            if no_rope and len(no_rope) < L:
                raise UserError(
                    f"no_rope_layers has {len(no_rope)} entries for {L} layers; correct config.json or copy it again"
                )
            slides = [
                (not no_rope[layer] if "no_rope_layers" in family.names else layer >= first)
                and window is not None
                for layer in range(L)
            ]
            found["layer_types"] = ["sliding_attention" if each else "full_attention" for each in slides]
    if "no_rope_layers" in family.names:
        found["no_rope_layers"] = _no_rope_layers(hf, L)
    if "num_local_experts" in family.names:
        # As versions of transformers have called it.
        for name in ("num_experts", "n_routed_experts", "num_local_experts"):
            if hf.get(name) is not None:
                found["num_local_experts"] = hf[name]
        found["mlp_only_layers"] = _dense_layers(hf, family, L)
    return found


def _count(hf: dict[str, Any], name: str, default: int) -> int:
    """A number of layers; null is the default, 0 is not."""
    return default if hf.get(name) is None else hf[name]


def _no_rope_layers(hf: dict[str, Any], L: int) -> list[int]:
    """SmolLM3: 1 where a layer rotates queries and keys."""
    interval = hf.get("no_rope_layer_interval") or 4
    return hf.get("no_rope_layers") or [int((layer + 1) % interval != 0) for layer in range(L)]


def _dense_layers(hf: dict[str, Any], family: Family, L: int) -> list[int]:
    """The layers without experts, in each family's own words."""
    if "mlp_only_layers" not in family.names:
        return []
    if "kv_lora_rank" in family.names:
        kinds = hf.get("mlp_layer_types")
        if kinds is not None:
            return [layer for layer, kind in enumerate(kinds) if kind == "dense"]
        return list(range(min(L, _count(hf, "first_k_dense_replace", 3))))
    step = hf.get("decoder_sparse_step") or 1
    listed = hf.get("mlp_only_layers") or []
    return sorted({*listed, *(layer for layer in range(L) if (layer + 1) % step)})


def write_config_json(config: Any, family: Family) -> dict[str, Any]:
    """The contents of a config.json for this `ModelConfig`."""
    hf: dict[str, Any] = {"architectures": [family.architecture], "model_type": config.model_type}
    if config.quantization is not None:
        hf["quantization_config"] = config.quantization.to_hf()
    hf |= {theirs: getattr(config, ours) for ours, theirs in family.names.items()}
    if family.names["hidden_act"] == "hidden_activation":  # what other programs than transformers know it as
        hf["hidden_activation"] = hf["hidden_activation"].replace("gelu_new", "gelu_pytorch_tanh")
    if family.architecture == "GPT2LMHeadModel":
        return hf
    # transformers 5 reads `rope_parameters`; earlier versions and other programs read the other two.
    scaling = config.rope_scaling or {"rope_type": "default"}
    hf["rope_parameters"] = {**scaling, "rope_theta": config.rope_theta}
    hf["rope_theta"] = config.rope_theta
    # A copy: transformers writes into it.
    hf["rope_scaling"] = config.rope_scaling and dict(config.rope_scaling)
    if family.architecture.startswith(("Qwen", "SmolLM3")):
        hf["use_sliding_window"] = config.sliding_window is not None
    if family.architecture.startswith(("SmolLM3", "Gemma2")):
        hf["pad_token_id"] = None  # the library's default is a token, whose embedding it would not train
    if "kv_lora_rank" in family.names:
        dense = hf.pop("mlp_only_layers")
        hf["first_k_dense_replace"] = len(dense)
        if "index_topk" in family.names:
            L = config.num_hidden_layers
            hf["mlp_layer_types"] = ["dense" if layer in dense else "sparse" for layer in range(L)]
    return hf


def _read_rope(hf: dict[str, Any], family: Family) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling of the rotary frequencies, from the style of transformers 5 or the older one, which wins where both are there."""
    rope = hf.get("rope_scaling") or hf.get("rope_parameters")
    rope = family.defaults.get("rope_scaling") or {} if rope is None else rope
    rope = dict(rope)
    thetas = (rope.pop("rope_theta", None), hf.get("rope_theta"), family.defaults.get("rope_theta"), 10_000.0)
    theta = next(each for each in thetas if each is not None)
    rope_type = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    if any(
        part not in (None, 1.0)
        for part in (rope.pop("partial_rotary_factor", None), hf.get("partial_rotary_factor"))
    ):
        raise UserError("partial_rotary_factor is not supported; use a checkpoint that rotates whole heads")
    if rope_type == "default":
        check_rope_scaling({"rope_type": "default", **rope}, head_dim=0)
        return theta, None
    positions = hf.get("max_position_embeddings", family.defaults["max_position_embeddings"])
    return theta, with_original_length({"rope_type": rope_type, **rope}, positions)


def _refuse_what_is_not_computed(hf: dict[str, Any], family: Family) -> None:
    """A choice that this family has only one of here, and entries that nothing here knows."""
    for name, usual in family.only.items():
        if hf.get(name, usual) != usual:
            raise UserError(f"{name} = {hf[name]!r:.60}, which is not supported; it must be {usual}")
    known = {*family.names.values(), *family.only, *_NEUTRAL, *_READ_APART}
    known |= _EXPERT_ENTRIES if "num_local_experts" in family.names else set()
    known |= _LATENT_ENTRIES if "kv_lora_rank" in family.names else set()
    for name, value in hf.items():
        if name not in known and value not in (None, False, 0, "", [], {}):
            raise UserError(
                f"{name} = {value!r:.60}, which is not supported for {hf['model_type']}; remove it if the model "
                "computes the same without it"
            )
