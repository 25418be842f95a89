"""Levels 1 and 2: the same initial weights, distributed as the library's own initialisation."""

from types import ModuleType
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import v1_quick.pretrain.train as train1
import v2_handwritten.pretrain.train as train2
import v3_numpy_deep.pretrain.train as train3
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from tests.parity.model_cases import CASES, config_of
from v1_quick.models.config import ModelConfig as LibraryConfig
from v1_quick.models.initialization import initial_weights as library_weights
from v1_quick.models.transformer import Transformer as LibraryTransformer
from v2_handwritten.models.config import ModelConfig
from v2_handwritten.models.initialization import initial_weights, parameter_shapes
from v2_handwritten.models.transformer import Transformer


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_one_seed_gives_the_same_bits_at_both_levels(case: str, equal: bool) -> None:
    config = config_of(case)
    library = LibraryConfig.from_hf(config.to_hf())
    ours, theirs = dict(initial_weights(config, 5, equal)), dict(library_weights(library, 5, equal))
    assert ours.keys() == theirs.keys() == parameter_shapes(config).keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    model = Transformer(config).initialize(5, equal)
    library_model = LibraryTransformer(library).initialize(5, equal)
    state, library_state = model.state_dict(), library_model.library.state_dict()
    assert all(torch.equal(state[name], library_state[name]) for name in library_state)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_spread_of_every_parameter_is_that_of_the_library(family: str) -> None:
    config = ModelConfig(
        model_type=family,
        vocab_size=512,
        hidden_size=96,
        num_hidden_layers=3,
        attention_bias=True,
        mlp_bias=True,
    )
    torch.manual_seed(0)
    library = AutoModelForCausalLM.from_config(LibraryConfig.from_hf(config.to_hf()))
    expected = {name: p.detach().double().numpy() for name, p in library.named_parameters()}
    for name, weight in initial_weights(config, 0):
        if weight.ndim == 1:
            assert np.array_equal(weight, expected[name]), name  # ones or zeros
        else:
            # The standard error of a standard deviation over n numbers is σ / √(2 n): five of them on each side.
            tolerance = 2 * 5 / np.sqrt(2 * weight.size)
            assert weight.std() / expected[name].std() == pytest.approx(1, abs=tolerance), name
            assert abs(weight.mean()) < 5 * weight.std() / np.sqrt(weight.size), name


def test_the_numbers_of_a_parameter_depend_on_nothing_but_seed_and_name() -> None:
    small = dict(initial_weights(ModelConfig(num_hidden_layers=1), 3))
    large = dict(initial_weights(ModelConfig(num_hidden_layers=2, tie_word_embeddings=False), 3))
    assert all(np.array_equal(small[name], large[name]) for name in small)
    other_seed = dict(initial_weights(ModelConfig(num_hidden_layers=1), 4))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not np.array_equal(small[name], other_seed[name])
    assert not np.array_equal(small[name], small["model.layers.0.self_attn.o_proj.weight"])


def test_keys_start_as_the_queries_that_read_them() -> None:
    config = ModelConfig(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=32)
    plain, equal = dict(initial_weights(config, 0)), dict(initial_weights(config, 0, equal_query_key=True))
    changed = {name for name in plain if not np.array_equal(plain[name], equal[name])}
    assert changed == {f"model.layers.{layer}.self_attn.k_proj.weight" for layer in (0, 1)}
    for layer in (0, 1):
        block = f"model.layers.{layer}.self_attn"
        queries = equal[f"{block}.q_proj.weight"].reshape(4, 8, 32)  # heads, of which 0 and 1 share a key
        keys = equal[f"{block}.k_proj.weight"].reshape(2, 8, 32)
        assert np.array_equal(keys, queries[[0, 2]])


def test_keys_start_as_queries_in_the_joint_matrix_of_gpt2() -> None:
    config = ModelConfig(model_type="gpt2", num_hidden_layers=1, num_attention_heads=2, hidden_size=16)
    plain, equal = dict(initial_weights(config, 0)), dict(initial_weights(config, 0, equal_query_key=True))
    changed = [name for name in plain if not np.array_equal(plain[name], equal[name])]
    assert changed == ["transformer.h.0.attn.c_attn.weight"]
    queries, keys, values = np.split(equal[changed[0]], 3, axis=1)
    assert np.array_equal(keys, queries)
    assert np.array_equal(values, plain[changed[0]][:, 32:])


@pytest.mark.parametrize("level", [train1, train2, train3], ids=["v1", "v2", "v3"])
def test_pretraining_starts_as_the_setting_says(level: ModuleType) -> None:
    tokenizer = Mock(spec=level.Tokenizer, vocab_size=64, end_of_text_id=0)
    for equal in (False, True):
        settings = Settings.model_validate({"model": {"model_type": "llama", "equal_query_key": equal}})
        model = level.build_model(settings, Mock(spec=RunFolder), tokenizer)
        weights = {
            name.removeprefix("library."): np.asarray(getattr(weight, "data", weight))
            for name, weight in model.named_parameters()
        }
        block = "model.layers.0.self_attn"
        same = np.array_equal(weights[f"{block}.q_proj.weight"], weights[f"{block}.k_proj.weight"])
        assert same == equal
