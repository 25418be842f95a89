"""The same initial weights at levels 2 and 3, distributed as the library's own initialization."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from shared_data.model_files.config import ModelConfig
from shared_data.model_files.initialization import initial_weights, parameter_shapes
from tests.parity.model_cases import CASES, config_of, library_config
from v2_handwritten.models.transformer import Transformer
from v3_numpy_deep.models.transformer import Transformer as ArrayTransformer


@pytest.mark.parametrize("case", CASES)
def test_one_seed_gives_the_same_bits_at_both_levels(case: str) -> None:
    config = config_of(case)
    weights = dict(initial_weights(config, 5))
    assert weights.keys() == parameter_shapes(config).keys()
    model, arrays = Transformer(config).initialize(5), ArrayTransformer(config).initialize(5)
    state, array_state = model.state_dict(), arrays.state_dict()
    for name, weight in weights.items():
        assert np.array_equal(state[name].numpy(), weight), name
        assert np.array_equal(array_state[name], weight), name


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
    library = AutoModelForCausalLM.from_config(library_config(config))
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
