"""The architecture from settings and from config.json, as the library reads it, and how it is counted."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.size import count_parameters, flops_per_token
from shared_data.settings import ModelSettings
from tests.parity.model_cases import CASES, LLAMA3_SCALING, config_of, library_config
from v2_handwritten.models.transformer import Transformer


@pytest.mark.parametrize("case", CASES)
def test_a_config_survives_the_way_through_the_library(case: str) -> None:
    config = config_of(case)
    assert ModelConfig.from_hf(library_config(config).to_dict()) == config
    assert ModelConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize("case", CASES)
def test_parameters_are_counted_as_the_built_models_have_them(case: str) -> None:
    config = config_of(case)
    with torch.device("meta"):
        models = Transformer(config), AutoModelForCausalLM.from_config(library_config(config))
    for model in models:
        assert sum(parameter.numel() for parameter in model.parameters()) == count_parameters(config)


@pytest.mark.parametrize("case", ["gpt2", "llama GQA", "llama MHA, untied", "llama MQA, biases, D > C/H"])
def test_flops_per_token_equal_the_counted_products_of_the_library_model(case: str) -> None:
    config, T = config_of(case), 16
    library = library_config(config)
    library._attn_implementation = "eager"  # its products are plain matmuls, which torch's counter sees
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(library, attn_implementation="eager")
        ids = torch.zeros(1, T, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(ids)
    assert counter.get_total_flops() == T * flops_per_token(config, T) // 3  # forward is a third


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "gpt2", "dropout": 0.1},
        {"model_type": "gpt2", "intermediate_size": 96, "tie_word_embeddings": False},
        {"model_type": "llama", "num_key_value_heads": 2, "rope_theta": 5e5},
        {"model_type": "llama", "head_dim": 16, "dropout": 0.2},
        {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
        {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"model_type": "gemma2", "query_pre_attn_scalar": 48, "attn_logit_softcapping": 20.0},
        {"model_type": "smollm3", "num_hidden_layers": 2, "no_rope_layers": [1, 0]},
    ],
)
def test_settings_give_an_architecture_that_the_library_builds(values: dict[str, Any]) -> None:
    settings = ModelSettings(hidden_size=96, num_attention_heads=4, **values)
    config = ModelConfig.from_settings(settings, vocab_size=300, eos_token_id=7)
    assert {name: getattr(config, name) for name in values if name != "dropout"} == {
        name: value for name, value in values.items() if name != "dropout"
    }
    assert config.attention_dropout == values.get("dropout", 0.0)
    assert ModelConfig.from_hf(library_config(config).to_dict()) == config


def test_settings_mean_what_the_families_do_where_they_are_silent() -> None:
    def config(**values: Any) -> ModelConfig:
        return ModelConfig.from_settings(
            ModelSettings(hidden_size=96, num_attention_heads=4, **values), vocab_size=300
        )

    gemma = config(model_type="gemma2", final_logit_softcapping=0)
    assert (gemma.attn_logit_softcapping, gemma.final_logit_softcapping) == (50.0, None)
    assert config(model_type="smollm3", no_rope_layers=[1, 1, 0]).no_rope_layers == [1, 1, 0, 1]
    yarn = config(rope_scaling={"rope_type": "yarn", "factor": 4.0}, max_position_embeddings=64).rope_scaling
    assert yarn == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "qwen2", "attention_bias": False}, "qwen2 has attention_bias = True always"),
        ({"model_type": "mixtral", "norm_topk_prob": False}, "mixtral has norm_topk_prob = True always"),
        ({"attn_logit_softcapping": 30}, "llama has no attn_logit_softcapping; use model_type gemma2"),
        ({"no_rope_layers": [0]}, "llama has no no_rope_layers; use model_type smollm3"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling None is not supported; supported: default, linear"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "yarn has factor None, not a positive number; correct it"),
        (
            {"model_type": "gpt2", "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "gpt2 learns its positions and has no rope_scaling",
        ),
    ],
)
def test_settings_that_a_family_does_not_have_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelConfig.from_settings(ModelSettings(**values), vocab_size=300)


LLAMA31 = {  # the fields of the 8B model's config.json
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "rope_theta": 500000.0,
    "rope_scaling": LLAMA3_SCALING | {"original_max_position_embeddings": 8192},
}


def test_published_configs_give_the_published_sizes() -> None:
    assert count_parameters(ModelConfig.from_hf({"model_type": "gpt2"})) == 124_439_808
    assert count_parameters(ModelConfig.from_hf(LLAMA31)) == 8_030_261_248


def test_old_and_new_styles_of_rope_in_config_json_mean_the_same() -> None:
    old = ModelConfig.from_hf(LLAMA31)
    new = dict(LLAMA31)
    new["rope_parameters"] = {**new.pop("rope_scaling"), "rope_theta": new.pop("rope_theta")}
    assert ModelConfig.from_hf(new) == old
    legacy = dict(LLAMA31, rope_scaling={"type": "linear", "factor": 2.0})
    assert ModelConfig.from_hf(legacy).rope_scaling == {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "t5"}, "'t5'; supported are gpt2, llama, mistral"),
        (
            {"rope_scaling": {"rope_type": "longrope", "factor": 4.0}},
            "'longrope' is not supported; supported: ",
        ),
        ({"rope_scaling": {"rope_type": "yarn"}}, "type yarn has factor None, not a positive number"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 0.5}}, "dynamic has factor 0.5, not 1 or more"),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "long_factor": [1.0]}},
            r"dynamic has long_factor = \[1.0\], which is not supported; remove",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 1, "beta_slow": 2}},
            "beta_fast 1, not at least beta_slow",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": "no"}}, "truncate 'no', not true"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": -1}},
            "mscale -1, not a number from 0",
        ),
        (
            {"rope_scaling": LLAMA3_SCALING | {"low_freq_factor": 4.0}},
            "high_freq_factor 4.0, not more than low_freq_factor",
        ),
        ({"rope_scaling": {"type": "default", "mrope_section": [2]}}, "type default has mrope_section"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"num_key_value_heads": 5}, "num_key_value_heads 5"),
        ({"hidden_size": 4095}, "4095"),
        ({"rope_scaling": {"type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (
            {"rope_scaling": {"rope_type": "linear"}},
            "type linear has factor None, not a positive number; correct",
        ),
        (
            {"rope_scaling": LLAMA3_SCALING | {"high_freq_factor": "4"}},
            "high_freq_factor '4', not a positive",
        ),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear', not an object; correct"),
        ({"model_type": ["llama"]}, r"\['llama'\]"),
        ({"vocab_size": 0}, "vocab_size is 0, not .*; correct"),
        ({"num_attention_heads": "32"}, "num_attention_heads is '32', not .*; correct"),
        (
            {"attention_bias": None, "tie_word_embeddings": "yes"},
            "tie_word_embeddings is 'yes', not .*; correct",
        ),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, not .*; correct"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is 10{59}, not .*; correct"),
        ({"rope_theta": 10**400}, "rope_theta is 10{59}, not .*; correct"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 10**400}}, "has factor 10{59}, not a positive"),
        ({"hidden_size": 10**400}, "hidden_size is 10{59}, not .*; correct"),
        ({"vocab_size": 2**31}, "vocab_size is 2147483648, not .*; correct"),
        *(
            ({name: id}, f"{name} is .*, not .*; correct")
            for name in ("bos_token_id", "eos_token_id")
            for id in ("x", ["a"], 1.5, {}, True, [1, None], 10**400, -2)
        ),
        ({"bos_token_id": [1]}, r"bos_token_id is \[1\], not .*; correct"),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "quantization_config has quant_method 'fp8', which is not supported; choose",
        ),
        ({"quantization_config": []}, "quantization_config"),
    ],
)
def test_an_architecture_we_cannot_build_is_a_user_error_that_names_it(
    change: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        ModelConfig.from_hf(LLAMA31 | change)


@pytest.mark.parametrize("id", [None, -1, 0, 128009, [128001, 128009], []])
def test_a_text_may_end_with_one_id_several_or_none(id: Any) -> None:
    config = ModelConfig.from_hf(LLAMA31 | {"eos_token_id": id, "quantization_config": None})
    assert config.eos_token_id == id
