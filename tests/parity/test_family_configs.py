"""config.json of every family: the library's defaults, the published models, the way there and back, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.families import FAMILIES
from shared_data.model_files.rope import attention_scale, rotary_scale
from shared_data.model_files.size import count_active_parameters, count_parameters
from tests.parity.family_cases import CASES, LIBRARY_FAMILIES, config_of
from tests.parity.published_configs import PUBLISHED


@pytest.mark.parametrize("family", LIBRARY_FAMILIES)
def test_a_silent_config_json_means_what_the_library_assumes(family: str) -> None:
    silent = ModelConfig.from_hf({"model_type": family})
    assert silent == ModelConfig.from_hf(AutoConfig.for_model(family).to_dict())


@pytest.mark.parametrize("case", CASES)
def test_a_config_survives_the_way_to_the_library_and_back(case: str, tmp_path: Path) -> None:
    config = config_of(case)
    assert ModelConfig.from_hf(config.to_hf()) == config
    library = AutoConfig.for_model(**config.to_hf())
    assert ModelConfig.from_hf(library.to_dict()) == config
    library.save_pretrained(tmp_path)  # writes only what differs from its defaults
    assert ModelConfig.from_hf(AutoConfig.from_pretrained(tmp_path).to_dict()) == config


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_and_counted(name: str) -> None:
    contents, parameters = PUBLISHED[name]
    config = ModelConfig.from_hf(contents)
    assert count_parameters(config) == parameters
    # Every value that the file names under our own name is the one we use.
    for field in ("hidden_size", "num_hidden_layers", "head_dim", "rms_norm_eps", "rope_theta"):
        assert getattr(config, field) == contents.get(field, getattr(config, field)), field
    assert ModelConfig.from_hf(AutoConfig.for_model(**contents).to_dict()) == config


def published(name: str) -> ModelConfig:
    return ModelConfig.from_hf(PUBLISHED[name][0])


def test_published_configs_say_what_their_papers_say() -> None:
    assert set(published("Mistral-7B-v0.1").layer_types) == {"sliding_attention"}
    for name in ("Mixtral-8x7B-v0.1", "Qwen2.5-0.5B", "Qwen3-0.6B", "Qwen3-30B-A3B", "SmolLM3-3B"):
        assert set(published(name).layer_types) == {"full_attention"}  # their windows are switched off
    assert published("Qwen2.5-0.5B").attention_bias
    assert published("Qwen3-0.6B").qk_norm
    assert [published("SmolLM3-3B").has_rope(layer) for layer in range(8)] == [True, True, True, False] * 2
    assert published("gemma-2-2b").layer_types == ["sliding_attention", "full_attention"] * 13
    assert attention_scale(published("gemma-2-2b")) == 1
    assert rotary_scale(published("gpt-oss-20b")) == pytest.approx(1.3466, abs=1e-4)  # 0.1 ln 32 + 1
    deepseek = published("DeepSeek-V3")
    assert deepseek.mlp_only_layers == [0, 1, 2]
    assert rotary_scale(deepseek) == 1  # mscale and mscale_all_dim are equal; the factor is put on the scores
    assert attention_scale(deepseek) == pytest.approx(1.8738, abs=1e-4)  # (0.1 ln 40 + 1)²


def test_published_counts_of_active_parameters() -> None:
    def billions(name: str) -> float:
        return count_active_parameters(published(name)) / 1e9

    assert round(billions("Mixtral-8x7B-v0.1"), 1) == 12.9
    assert round(billions("Qwen3-30B-A3B"), 1) == 3.4  # the card says 3.3
    gpt_oss = published("gpt-oss-20b")
    embedding = gpt_oss.vocab_size * gpt_oss.hidden_size / 1e9
    assert round(billions("gpt-oss-20b") - embedding, 2) == 3.61


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "entry",
    [
        {"use_parallel_residual": True},
        {"mup_scale": 0.5},
        {"quantization_config": {"bits": 4}},
        {"clip_qkv": 8},
    ],
    ids=str,
)
def test_an_entry_that_is_not_computed_is_refused_by_name(family: str, entry: dict[str, Any]) -> None:
    (name,) = entry
    with pytest.raises(UserError, match=f"config.json: {name} .*(remove|use)"):
        ModelConfig.from_hf({"model_type": family} | entry)


@pytest.mark.parametrize("family", FAMILIES)
def test_entries_that_change_no_number_and_empty_ones_are_read_over(family: str) -> None:
    neutral = {
        "architectures": ["X"],
        "torch_dtype": "bfloat16",
        "dtype": "float16",
        "transformers_version": "4.40.0",
        "use_cache": True,
        "pad_token_id": 0,
        "_name_or_path": "somewhere",
        "auto_map": {"AutoModel": "modeling.X"},
        "id2label": {"0": "A"},
        "clip_qkv": None,
        "mup_scale": False,
    }
    assert ModelConfig.from_hf({"model_type": family} | neutral) == ModelConfig.from_hf(
        {"model_type": family}
    )


@pytest.mark.parametrize(
    ("family", "entry", "message"),
    [
        ("llama", {"sliding_window": 5}, "sliding_window = 5, which is not supported for llama"),
        ("llama", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping = 5.0, which is not supported"),
        ("gemma2", {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping is 0"),
        ("gemma2", {"hidden_activation": "gelu"}, "activation 'gelu' is not supported for gemma2"),
        (
            "gemma2",
            {"use_bidirectional_attention": True},
            "use_bidirectional_attention = True, which is not supported",
        ),
        ("gemma2", {"sliding_window": None}, "sliding_attention needs sliding_window"),
        ("gpt_oss", {"layer_types": ["chunked_attention"] * 36}, "no layer of the type 'chunked_attention'"),
        ("qwen3", {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 32 layers"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise = 0.1"),
        ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok 9 is more than the 8 experts"),
        ("mistral", {"sliding_window": 0}, "sliding_attention needs sliding_window, a positive number"),
        ("mistral", {"sliding_window": -1}, "sliding_window is -1, not .*; correct"),
        ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq = 2"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
    ],
)
def test_what_a_family_has_not_is_one_clear_line(family: str, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        ModelConfig.from_hf({"model_type": family} | entry)
    assert "\n" not in str(error.value)


def test_gpt_oss_has_yarn_unless_its_config_names_another_kind() -> None:
    assert ModelConfig.from_hf({"model_type": "gpt_oss", "rope_scaling": None}).rope_scaling is not None
    plain = {"rope_type": "default", "rope_theta": 1e4}
    config = ModelConfig.from_hf({"model_type": "gpt_oss", "rope_parameters": plain})
    assert (config.rope_scaling, config.rope_theta) == (None, 1e4)
    assert ModelConfig.from_hf(config.to_hf()) == config


ODD = {
    "qwen2": [{"max_window_layers": "all"}, {"use_sliding_window": True, "max_window_layers": [1]}],
    "smollm3": [
        {"no_rope_layers": 3},
        {"no_rope_layers": [1]},
        {"no_rope_layer_interval": 0},
        {"no_rope_layer_interval": "4"},
    ],
    "qwen3_moe": [{"decoder_sparse_step": "2"}, {"mlp_only_layers": 3}],
    "deepseek_v3": [{"first_k_dense_replace": "3"}, {"q_lora_rank": -1}],
    "deepseek_v32": [{"mlp_layer_types": True}],
    "llama": [{"num_hidden_layers": 2_000_000_000}],
}


@pytest.mark.parametrize(
    ("family", "entry"), [(name, entry) for name, entries in ODD.items() for entry in entries]
)
def test_an_odd_value_is_one_clear_line(family: str, entry: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{list(entry)[-1]} (is|has) .*; correct"):
        ModelConfig.from_hf({"model_type": family} | entry)


@pytest.mark.parametrize("family", ["mistral", "mixtral", "qwen2", "qwen3", "llama"])
def test_null_key_value_heads_mean_as_many_as_query_heads(family: str) -> None:
    config = ModelConfig.from_hf(
        {"model_type": family, "num_key_value_heads": None, "partial_rotary_factor": None}
    )
    assert config.num_key_value_heads == config.num_attention_heads


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model_type": "mistral", "sliding_window": 4, "layer_types": ["full_attention"]},
            "in all layers or in none",
        ),
        ({"model_type": "deepseek_v3", "mlp_only_layers": [1]}, "has its dense layers first, not \\[1\\]"),
        ({"model_type": "deepseek_v3", "num_key_value_heads": 2}, "leave it out"),
    ],
)
def test_what_a_folder_could_not_say_is_refused_before_training(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelConfig(**values)
    assert ModelConfig(model_type="deepseek_v3", mlp_only_layers=[1, 0, 0]).mlp_only_layers == [0, 1]
