"""SmolLM2-135M-Instruct, a real model in a GGUF file, at all levels. It comes with the extra `smollm2`, and without it these tests are skipped."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import v1_quick
import v2_handwritten
import v3_numpy_deep
from shared_data.errors import UserError
from shared_data.model_files.folder import read_config
from shared_data.model_names import smollm2_file

try:
    FILE = smollm2_file("v2")
except UserError:
    pytest.skip("the extra smollm2 is not installed (uv sync --extra smollm2)", allow_module_level=True)

PROMPTS = ["The capital of France is", "def fibonacci(n):\n    "]
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def ids() -> dict[str, list[list[int]]]:
    """The greedy continuations of each level."""
    found = {}
    for level in (v1_quick, v2_handwritten, v3_numpy_deep):
        tokenizer, model = level.load_tokenizer(FILE), level.load_model(FILE)
        prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
        found[level.__name__] = level.generate(model, prompts, max_new_tokens=NEW_TOKENS)
    return found


def test_greedy_ids_are_equal_at_all_levels(ids: dict[str, list[list[int]]]) -> None:
    assert ids["v1_quick"] == ids["v2_handwritten"] == ids["v3_numpy_deep"]
    assert "Paris" in v2_handwritten.load_tokenizer(FILE).decode(ids["v2_handwritten"][0])


def test_the_configuration_is_the_published_one() -> None:
    config = read_config(FILE)
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("llama", 30, 576)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (9, 3, 64)
    assert (config.rms_norm_eps, config.rope_theta, config.max_position_embeddings) == (1e-5, 100_000.0, 8192)
    assert (config.tie_word_embeddings, config.bos_token_id, config.eos_token_id) == (True, 1, 2)


def test_digits_are_cut_apart_where_the_library_joins_them() -> None:
    text = "In 2026, 12345 foxes."
    tokenizers = [level.load_tokenizer(FILE) for level in (v1_quick, v2_handwritten, v3_numpy_deep)]
    first, *others = [tokenizer.encode(text) for tokenizer in tokenizers]
    assert all(other == first for other in others)
    assert [tokenizers[0].decode([id]) for id in first][1:7] == [" ", "2", "0", "2", "6", ","]
    theirs = AutoTokenizer.from_pretrained(Path(FILE).parent, gguf_file=Path(FILE).name)
    assert theirs.encode(text) != first  # once the library knows the name, level 1 can use its tokenizer


def test_the_weights_are_those_of_the_library() -> None:
    ours, theirs = v2_handwritten.load_model(FILE), v1_quick.load_model(FILE)
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, theirs.state_dict()[name]), name
