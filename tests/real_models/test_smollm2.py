"""SmolLM2-135M-Instruct, a real model in a GGUF file, at all levels. It comes with the extra `smollm2`, and without it these tests are skipped."""

import inspect
import sys
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import v1_quick
import v2_handwritten
import v3_numpy_deep
from shared_data.errors import UserError
from shared_data.inference.chat import complete_chat
from shared_data.inference.prompts import encode_chat
from shared_data.model_files.folder import read_config
from shared_data.model_names import smollm2_file
from tests.benchmarks.decoding import peak_memory
from v2_handwritten.inference import quantized_matrices
from v2_handwritten.models.quantization.quantize import quantize_model

try:
    FILE = smollm2_file("v2")
except UserError:
    pytest.skip("the extra smollm2 is not installed (uv sync --extra smollm2)", allow_module_level=True)

PROMPTS = ["The capital of France is", "def fibonacci(n):\n    "]
NEW_TOKENS = 12


Level = tuple[Any, Any]  # tokenizer and model


@pytest.fixture(scope="module")
def levels() -> dict[str, Level]:
    """Tokenizer and model of each level."""
    packages = {"v1": v1_quick, "v2": v2_handwritten, "v3": v3_numpy_deep}
    return {name: (level.load_tokenizer(FILE), level.load_model(FILE)) for name, level in packages.items()}


def test_greedy_ids_are_equal_at_all_levels(levels: dict[str, Level]) -> None:
    generate = {"v1": v1_quick.generate, "v2": v2_handwritten.generate, "v3": v3_numpy_deep.generate}
    texts = []
    for name, (tokenizer, model) in levels.items():
        prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
        ids = generate[name](model, prompts, max_new_tokens=NEW_TOKENS)
        texts.append((prompts, ids, [tokenizer.decode(row) for row in ids]))
    assert texts[0] == texts[1] == texts[2]
    assert "Paris" in texts[0][2][0]


def test_a_conversation_is_the_same_at_all_levels(levels: dict[str, Level]) -> None:
    """In its own template, with its default system message, up to its own end of a turn."""
    generate = {"v1": v1_quick.generate, "v2": v2_handwritten.generate, "v3": v3_numpy_deep.generate}
    for name, (tokenizer, model) in levels.items():
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        prompt = tokenizer.decode(encode_chat(tokenizer, messages))
        assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
        answers = []
        for question in ("And of Italy? Answer in one word.<|im_end|>", ""):
            (answer,) = complete_chat(generate[name], model, tokenizer, [messages], max_new_tokens=24)
            answers.append(answer)
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
        assert answers == ["The capital of France is Paris.", "The capital of Italy is Rome."], name


def test_the_weights_are_those_of_the_library(levels: dict[str, Level]) -> None:
    theirs = levels["v1"][1].state_dict()
    for name, parameter in levels["v2"][1].named_parameters():
        assert torch.equal(parameter, theirs[name]), name


def test_text_is_cut_as_the_model_knows_it_at_all_levels(levels: dict[str, Level]) -> None:
    ours = [tokenizer for tokenizer, _ in levels.values()]
    theirs = AutoTokenizer.from_pretrained(FILE.parent, gguf_file=FILE.name)
    for text, joined in (("In 2026, 12345 foxes.", False), ("Steps:\n\n1. Mix", True), ("a  5", True)):
        first, *others = [tokenizer.encode(text) for tokenizer in ours]
        assert all(other == first for other in others)
        # Once the library knows this way to cut, level 1 can use its tokenizer.
        assert (theirs.encode(text) != first) is joined
    assert [ours[1].decode([id]) for id in ours[1].encode("a 2026")] == ["a", " ", "2", "0", "2", "6"]


def test_the_configuration_is_the_published_one() -> None:
    config = read_config(FILE)
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("llama", 30, 576)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (9, 3, 64)
    assert (config.rms_norm_eps, config.rope_theta, config.max_position_embeddings) == (1e-5, 100_000.0, 8192)
    assert (config.tie_word_embeddings, config.bos_token_id, config.eos_token_id) == (True, 1, 2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("package", ["v2_handwritten", "v3_numpy_deep"])
def test_a_process_that_writes_needs_little_more_memory_than_the_weights(package: str) -> None:
    assert 1 < peak_memory(package, str(FILE)) <= 1.15


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_quantized_model_is_compiled_and_writes_sense(
    levels: dict[str, Level], scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is a C++ compiler; the ordinary pass, which needs none, writes the same."""
    for name in ("mixed_row", "int8_row", "int4_row"):  # the shape checker of the tests cannot be compiled
        monkeypatch.setattr(quantized_matrices, name, inspect.unwrap(getattr(quantized_matrices, name)))
    tokenizer = levels["v2"][0]
    model = quantize_model(v2_handwritten.load_model(FILE), scheme)
    prompt = tokenizer.encode(PROMPTS[0])
    (alone,) = v2_handwritten.generate(model, [prompt], max_new_tokens=4)
    twice = v2_handwritten.generate(model, [prompt, prompt[:-1]], max_new_tokens=4)
    assert alone == twice[0]  # two rows take the ordinary pass
    assert "Paris" in tokenizer.decode(alone)
