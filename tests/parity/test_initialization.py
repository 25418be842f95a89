"""Levels 1 and 2: the same initial weights, distributed as the library's own initialisation."""

from types import ModuleType
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import v1_quick.pretrain.train as train1
import v2_handwritten.pretrain.train as train2
import v3_numpy_deep.pretrain.train as train3
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.initialization import initial_weights, parameter_shapes
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from tests.parity.model_cases import CASES, config_of
from v1_quick.models.config import ModelConfig as LibraryConfig
from v1_quick.models.initialization import initial_weights as library_weights
from v1_quick.models.transformer import Transformer as LibraryTransformer
from v2_handwritten.models.transformer import Transformer

STARTS = {
    "plain": (False, False),
    "equal": (True, False),
    "induction": (True, True),
    "circuit": (False, True),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("case", CASES)
def test_one_seed_gives_the_same_bits_at_both_levels(case: str, start: str) -> None:
    config, choices = config_of(case), STARTS[start]
    library = LibraryConfig.from_hf(config.to_hf())
    if choices[1] and (config.model_type != "llama" or config.num_hidden_layers < 2):
        choices = (choices[0], False)  # the settings refuse it
    ours, theirs = dict(initial_weights(config, 5, *choices)), dict(library_weights(library, 5, *choices))
    assert ours.keys() == theirs.keys() == parameter_shapes(config).keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    model = Transformer(config).initialize(5, *choices)
    library_model = LibraryTransformer(library).initialize(5, *choices)
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


# ---- the circuit that finds what followed a token earlier ----


def circuit(**changes: Any) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """A configuration, and its weights with the circuit laid out."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 128, "initializer_range": 0.06}
    config = ModelConfig(**{**sizes, "vocab_size": 512, "rope_theta": 5e5, **changes})
    return config, dict(initial_weights(config, 0, equal_query_key=True, induction_heads=True))


def attention_weights(
    config: ModelConfig, weights: dict[str, np.ndarray], ids: torch.Tensor
) -> list[torch.Tensor]:
    """The attention weights [H, T, T] of each layer, as the library's model reports them."""
    library = AutoModelForCausalLM.from_config(
        LibraryConfig.from_hf(config.to_hf()), attn_implementation="eager"
    )
    library.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()}, strict=False)
    with torch.no_grad():
        return [layer[0] for layer in library.eval()(ids[None], output_attentions=True).attentions]


def repeated_text(config: ModelConfig, length: int) -> torch.Tensor:
    """Random tokens, all different, and the same again."""
    once = torch.randperm(config.vocab_size, generator=torch.Generator().manual_seed(1))[:length]
    return torch.cat([once, once])


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_a_head_of_the_first_layer_looks_one_token_back(key_heads: int) -> None:
    config, weights = circuit(num_key_value_heads=key_heads)
    plain = dict(initial_weights(config, 0, equal_query_key=True))
    text, back = repeated_text(config, 24), torch.arange(47)
    looks, plainly = (attention_weights(config, w, text)[0] for w in (weights, plain))
    for head in range(4 // key_heads):  # the query heads that read the first key head
        assert torch.equal(looks[head].argmax(1)[1:], back), head
        assert looks[head].diagonal(-1).mean() > 0.5 > 0.1 > plainly[head].diagonal(-1).mean(), head


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_heads_of_the_second_layer_find_what_followed_the_token_earlier(key_heads: int) -> None:
    config, weights = circuit(num_key_value_heads=key_heads)
    plain = dict(initial_weights(config, 0, equal_query_key=True))
    second = torch.arange(24, 47)  # the second time
    preference = []
    for start in (weights, plain):
        looks = attention_weights(config, start, repeated_text(config, 24))[1]
        found = looks[: max(1, key_heads // 2) * 4 // key_heads].mean(0)
        behind = found[second, second - 23]  # the token behind the earlier mention
        others = torch.stack([found[second, second - back] for back in range(1, 23)])
        preference.append(behind.mean() / others.mean())
    assert preference[0] > 1.15 > 1.05 > preference[1]


def test_upper_layers_write_what_they_read_and_the_random_rest_writes_little() -> None:
    config, weights = circuit(num_hidden_layers=3, num_key_value_heads=2)
    plain = dict(initial_weights(config, 0, equal_query_key=True))
    for layer in range(3):
        block = f"model.layers.{layer}"
        output, plain_output = (w[f"{block}.self_attn.o_proj.weight"] for w in (weights, plain))
        if layer:
            values = weights[f"{block}.self_attn.v_proj.weight"].reshape(2, 1, 32, 128)
            assert np.array_equal(output, 0.5 * values.repeat(2, axis=1).reshape(128, 128).T)
            # Value and output matrix together map a state to a multiple of itself, as far as random matrices can.
            copied = output @ values.repeat(2, axis=1).reshape(128, 128)
            assert np.trace(copied) > 10 * abs(copied - np.diag(np.diag(copied))).max()
        else:
            assert np.array_equal(output, np.float32(0.5) * plain_output)
        down = f"{block}.mlp.down_proj.weight"
        assert np.array_equal(weights[down], np.float32(0.1) * plain[down])
    assert all(
        np.array_equal(weights[name], plain[name]) for name in weights if "gate" in name or "norm" in name
    )


def test_a_token_is_seen_by_its_mean_and_by_nothing_else_of_the_mean() -> None:
    _, weights = circuit()
    embedding = weights["model.embed_tokens.weight"]
    assert embedding.mean(1) == pytest.approx(0.7 * 0.06, rel=1e-4)
    for layer, kinds in ((0, "v"), (1, "qv")):  # the first layer's first queries and keys see the mean
        for kind in kinds:
            assert abs(weights[f"model.layers.{layer}.self_attn.{kind}_proj.weight"].mean(1)).max() < 1e-7


@pytest.mark.parametrize("level", [train1, train2, train3], ids=["v1", "v2", "v3"])
def test_pretraining_starts_as_the_setting_says(level: ModuleType) -> None:
    tokenizer = Mock(spec=level.Tokenizer, vocab_size=64, end_of_text_id=0)
    for equal, induction in ((False, False), (True, False), (True, True)):
        chosen = {"model_type": "llama", "equal_query_key": equal, "induction_heads": induction}
        settings = Settings.model_validate({"model": chosen})
        model = level.build_model(settings, Mock(spec=RunFolder), tokenizer)
        weights = {
            name.removeprefix("library."): np.asarray(getattr(weight, "data", weight))
            for name, weight in model.named_parameters()
        }
        means = weights["model.embed_tokens.weight"].mean(1)
        assert (means.std() < 1e-6) == induction
        block = "model.layers.2.self_attn"
        same = np.array_equal(weights[f"{block}.q_proj.weight"], weights[f"{block}.k_proj.weight"])
        assert same == equal
