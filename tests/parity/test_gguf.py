"""GGUF files at all levels: what the library `gguf` wrote gives the same logits everywhere, and what we export is read by transformers."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as LibraryTokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import v1_quick.models.checkpoint as v1
import v3_numpy_deep.models.checkpoint as v3
from shared_data.command_line import build_app
from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.folder import read_config
from shared_data.model_files.gguf import NewTensor, read_gguf, write_gguf
from shared_data.model_files.gguf_blocks import BLOCK_TYPES
from shared_data.model_files.gguf_export import export_gguf
from shared_data.model_files.gguf_names import ROPE_FACTORS
from shared_data.model_files.initialization import initial_weights
from shared_data.tokenizer.tokenizer_file import new_definition
from tests.gguf_files import write_model
from tests.parity.arrays import integers
from tests.parity.recorder import ParityRecorder
from v1_quick.data_pipeline.tokenizer.tokenizer import load_tokenizer as load_library_tokenizer
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe
from v2_handwritten.data_pipeline.tokenizer.tokenizer import load_tokenizer
from v2_handwritten.models.checkpoint import load_model, save_model
from v2_handwritten.models.transformer import Transformer
from v3_numpy_deep.autograd import no_grad

V, B, T = 96, 2, 40
SMALL: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
YARN_ENTRIES = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 16,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CASES: dict[str, dict[str, Any]] = {
    "llama, tied": {},
    "llama, untied": {"tie_word_embeddings": False},
    "llama, biases, D > C/H": {"attention_bias": True, "mlp_bias": True, "head_dim": 24},
    "llama, linear rope": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "llama, yarn": {"rope_scaling": YARN},
    "llama, llama3 rope": {"rope_scaling": LLAMA3, "rope_theta": 500_000.0},
    "qwen2, biases": {"rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0},
    "qwen3, D > C/H": {"head_dim": 128, "tie_word_embeddings": False},
    "gpt2": {"num_key_value_heads": 0},
}
ENTRIES = {
    "llama, linear rope": {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
    "llama, yarn": YARN_ENTRIES,
}


def config_of(case: str, **more: Any) -> ModelConfig:
    return ModelConfig(**SMALL | {"model_type": case.split(",")[0]} | CASES.get(case, {}) | more)


def weights_of(config: ModelConfig) -> dict[str, np.ndarray]:
    """Weights whose norms and biases are not 1 and 0."""
    rng = np.random.default_rng(3)
    weights = dict(initial_weights(config, 0))
    for name, weight in weights.items():
        if weight.ndim == 1:
            weights[name] = weight + rng.standard_normal(weight.shape, dtype=np.float32) * np.float32(0.1)
    return weights


def llama3_factors(D: int, theta: float) -> np.ndarray:
    """As llama.cpp's conversion computes them from a config.json, wave length by wave length."""
    factors = []
    for frequency in 1.0 / theta ** (np.arange(0, D, 2) / D):
        length = 2 * np.pi / frequency
        smooth = (8192 / length - 1.0) / (4.0 - 1.0)
        middle = 1 / ((1 - smooth) / 8.0 + smooth) if 8192 / 4 <= length <= 8192 else 0
        factors.append(1.0 if length < 8192 / 4 else 8.0 if length > 8192 else middle)
    return np.array(factors, np.float32)


def logits_of(path: Path) -> dict[str, np.ndarray]:
    """The logits of all three levels on the same ids."""
    ids = integers(1, V, B, T)
    level1, level2, level3 = v1.load_model(path), load_model(path), v3.load_model(path)
    assert level1.dtype == torch.float32
    with torch.no_grad(), no_grad():
        return {
            "v1": level1(torch.from_numpy(ids), use_cache=False).logits.numpy(),
            "v2": level2(torch.from_numpy(ids)).numpy(),
            "v3": level3(ids).data,
        }


def agree(parity: ParityRecorder, component: str, logits: dict[str, np.ndarray]) -> None:
    for first, second in (("v2", "v1"), ("v3", "v2")):
        parity(
            component=f"gguf, {component}",
            quantity="logits",
            levels=f"{first}-{second}",
            actual=logits[first],
            expected=logits[second],
            tolerance=1e-5,
        )


@pytest.mark.parametrize("case", CASES)
def test_a_file_as_llama_cpp_writes_it_gives_the_same_logits_at_all_levels(
    parity: ParityRecorder, tmp_path: Path, case: str
) -> None:
    config, path = config_of(case), tmp_path / "model.gguf"
    weights = weights_of(config)
    factors = {}
    if case == "llama, llama3 rope":
        factors = {ROPE_FACTORS: llama3_factors(config.head_dim, config.rope_theta)}
    write_model(path, config, weights, more=ENTRIES.get(case), tensors=factors)
    assert read_config(path) == replace(config, initializer_range=0.02)  # which a file does not say
    for name, parameter in load_model(path).named_parameters():
        np.testing.assert_array_equal(parameter.detach(), weights[name])
    agree(parity, case, logits_of(path))


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_every_type_gives_the_same_logits_at_all_levels(
    parity: ParityRecorder, tmp_path: Path, kind: str
) -> None:
    config = config_of(
        "llama", hidden_size=256, intermediate_size=256, num_hidden_layers=1, initializer_range=0.1
    )
    write_model(tmp_path / "model.gguf", config, weights_of(config), kind)
    file = read_gguf(tmp_path / "model.gguf")
    assert {tensor.type for tensor in file.tensors.values()} == {"F32", kind}
    agree(parity, kind, logits_of(tmp_path / "model.gguf"))


def test_an_end_token_that_is_no_number_is_refused(tmp_path: Path) -> None:
    config, path = config_of("llama"), tmp_path / "model.gguf"
    write_model(path, config, weights_of(config))
    file = read_gguf(path)
    tensors = {
        name: NewTensor(tensor.type, tensor.shape, partial(file.array, name))
        for name, tensor in file.tensors.items()
    }
    write_gguf(tmp_path / "b.gguf", file.metadata | {"tokenizer.ggml.eos_token_id": [1, 2]}, tensors)
    with pytest.raises(UserError, match=r"has eos_token_id \[1, 2\], not a number; copy it again"):
        read_config(tmp_path / "b.gguf")


def test_training_can_start_from_a_file(tmp_path: Path) -> None:
    config = config_of("llama")
    write_model(tmp_path / "model.gguf", config, weights_of(config))
    model = load_model(tmp_path / "model.gguf").train()
    model.loss(torch.from_numpy(integers(1, V, B, T)), torch.from_numpy(integers(2, V, B, T))).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "experts": ({"expert_count": 8}, r"sets llama.expert_count = 8, which is not supported; "),
    "window": ({"attention.sliding_window": 4096}, r"llama.attention.sliding_window = 4096"),
    "part of a head": ({"rope.dimension_count": 8}, r"llama.rope.dimension_count = 8 where a head has 16"),
    "another scaling": (
        {"rope.scaling.type": "longrope"},
        r"rope_scaling 'longrope' is not supported; supported",
    ),
    "no factor": ({"rope.scaling.type": "linear"}, r"linear has factor None, not a positive number"),
    "a factor of yarn": (
        YARN_ENTRIES | {"rope.scaling.attn_factor": 0.5},
        r"llama.rope.scaling.attn_factor = 0.5, which is not",
    ),
    "unknown": ({"logit_scale": 0.5}, r"llama.logit_scale = 0.5, which is not supported"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_is_refused_by_name(tmp_path: Path, name: str) -> None:
    more, message = REFUSED[name]
    config = config_of("llama")
    write_model(tmp_path / "model.gguf", config, weights_of(config), more=more)
    for load in (v1.load_model, load_model, v3.load_model):
        with pytest.raises(UserError, match=message):
            load(tmp_path / "model.gguf")


def test_other_factors_of_rope_and_unknown_tensors_are_refused(tmp_path: Path) -> None:
    config = config_of("llama")
    for name, message in (
        (ROPE_FACTORS, rf"has a {ROPE_FACTORS} that is not Llama 3's"),
        ("blk.0.ssm_a", r"has unexpected tensor blk.0.ssm_a for a llama model of 2 layers; copy it again"),
    ):
        extra = np.linspace(1, 5, config.head_dim // 2, dtype=np.float32)
        write_model(tmp_path / "model.gguf", config, weights_of(config), tensors={name: extra})
        with pytest.raises(UserError, match=message):
            load_model(tmp_path / "model.gguf")


def exported(case: str, folder: Path, type_name: str) -> tuple[Path, Transformer]:
    """A model with a tokenizer, saved as a folder and exported from it."""
    texts = ["Once there was a fox of 12 years. It's café time, once again!"]
    tokenizer = train_bpe(texts, 280, pattern="gpt4", special_tokens=["<|endoftext|>", "<|im_end|>"])
    tokenizer.save(folder)
    size = tokenizer.vocab_size + 3  # more embeddings than ids
    config = config_of(case, vocab_size=size, bos_token_id=tokenizer.end_of_text_id)
    end = tokenizer.end_of_text_id
    config = replace(config, eos_token_id=[end + 1, end])
    model = Transformer(config)
    model.load_state_dict(
        {name: torch.from_numpy(weight) for name, weight in weights_of(config).items()}, strict=False
    )
    model.tie_weights()
    save_model(model, folder)
    path = folder / "exported.gguf"
    export_gguf(folder, folder, path, type_name)
    return path, model.eval()


@pytest.mark.parametrize("case", CASES)
def test_an_exported_model_is_the_same_model(tmp_path: Path, case: str) -> None:
    path, model = exported(case, tmp_path, "f32")
    again = load_model(path)
    assert again.config == replace(read_config(tmp_path), initializer_range=0.02)
    for name, parameter in model.named_parameters():
        assert torch.equal(again.state_dict()[name], parameter)
    text = "Once there was a café in 2026, 12345 foxes!<|endoftext|>"
    tokenizers = [load_tokenizer(tmp_path), load_tokenizer(path), load_library_tokenizer(path)]
    assert len({tuple(tokenizer.encode(text)) for tokenizer in tokenizers}) == 1
    assert tokenizers[1].config["chat_template"] == tokenizers[0].config["chat_template"]
    assert tokenizers[1].vocab_size == tokenizers[0].vocab_size


@pytest.mark.parametrize("case", ["llama, untied", "qwen2, biases", "qwen3, D > C/H"])
def test_transformers_reads_an_exported_model_by_itself(
    parity: ParityRecorder, tmp_path: Path, case: str
) -> None:
    path, model = exported(case, tmp_path, "f32")
    library = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    ids = torch.from_numpy(integers(1, V, B, T))
    with torch.no_grad():
        expected = library(ids, use_cache=False).logits
        parity(
            component=f"gguf, exported {case}",
            quantity="logits",
            levels="v2-v1",
            actual=model(ids),
            expected=expected,
            tolerance=1e-5,
        )
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    text = "Once there was a café in 2026!"
    assert theirs.encode(text, add_special_tokens=False) == load_tokenizer(path).encode(text)


@pytest.mark.parametrize(("type_name", "step"), [("f16", 2.0**-11), ("q8_0", 0.51 / 127)])
def test_an_exported_type_is_as_near_as_its_format(tmp_path: Path, type_name: str, step: float) -> None:
    path, model = exported("llama", tmp_path, type_name)
    again = load_model(path).state_dict()
    for name, parameter in model.named_parameters():
        largest = parameter.detach().abs().max() if parameter.ndim > 1 else 0.0
        assert (again[name] - parameter).abs().max() <= step * largest, name
    twice = tmp_path / "twice.gguf"
    export_gguf(path, path, twice, type_name)  # what is stored already stays as it is
    assert all(torch.equal(tensor, again[name]) for name, tensor in load_model(twice).state_dict().items())


def test_rows_that_end_inside_a_block_become_float16(tmp_path: Path) -> None:
    config = config_of("llama", hidden_size=48, num_attention_heads=2, intermediate_size=64)
    model = Transformer(config)
    save_model(model, tmp_path)
    tokenizer = new_definition({"a": 0, "b": 1, "ab": 2}, [("a", "b")], "gpt2", [])
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    export_gguf(tmp_path, tmp_path, tmp_path / "a.gguf", "q8_0")
    types = {name: tensor.type for name, tensor in read_gguf(tmp_path / "a.gguf").tensors.items()}
    assert types["blk.0.attn_q.weight"] == "F16"
    assert types["blk.0.ffn_down.weight"] == "Q8_0"
    assert types["blk.0.attn_norm.weight"] == "F32"


def test_an_export_is_refused_in_one_line(tmp_path: Path) -> None:
    path, _ = exported("llama", tmp_path, "f32")
    before = path.read_bytes()
    for file, type_name, message in (
        (path, "f32", r"exported.gguf exists; choose another name, or replace it with --force"),
        (
            tmp_path / "a.bin",
            "f32",
            r"a.bin is no name of a GGUF file; let --out end in .gguf, and name a run's model by its folder",
        ),
        (tmp_path / "a.gguf", "q4_k", r"--type 'q4_k' is not supported; choose f32, f16 or q8_0"),
    ):
        with pytest.raises(UserError, match=message):
            export_gguf(tmp_path, tmp_path, file, type_name)
    export_gguf(tmp_path, tmp_path, path, "f32", force=True)
    assert path.read_bytes() == before
    for model_type, choice, message in (
        (
            "smollm3",
            {},
            r"smollm3 is not exported; the families that are: llama, mistral, qwen2, qwen3, gpt2",
        ),
        ("mistral", {"sliding_window": 8}, r"a mistral with a sliding window is not exported"),
        ("qwen3", {"attention_bias": True}, r"llama.cpp has no qwen3 with attention_bias"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, r"rope scaling dynamic with"),
    ):
        folder = tmp_path / model_type
        save_model(Transformer(config_of(model_type, **choice)), folder, tmp_path)
        with pytest.raises(UserError, match=message):
            export_gguf(folder, tmp_path, folder / "a.gguf", "f32")


@pytest.mark.parametrize("level", ["v1", "v2", "v3"])
def test_the_command_writes_the_same_file_at_every_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    expected, _ = exported("qwen2, biases", tmp_path / "model", "q8_0")
    monkeypatch.chdir(tmp_path)
    app = build_app(level, "A level for tests.", {"sft": "module:function"})
    words = ["export", "--model", "model", "--type", "q8_0", "--out"]
    for file, force, code in (("a.gguf", [], 0), ("a.gguf", [], 2), ("a.gguf", ["--force"], 0)):
        with pytest.raises(SystemExit) as leave:
            app([*words, file, *force])
        assert leave.value.code == code
    assert Path("a.gguf").read_bytes() == expected.read_bytes()


def test_the_library_reads_our_definition(tmp_path: Path) -> None:
    path, _ = exported("llama", tmp_path, "f32")
    definition = load_tokenizer(path).definition
    text = "Once there was a café in 2026, 12345 foxes!"
    assert LibraryTokenizer.from_str(json.dumps(definition)).encode(text).ids == load_tokenizer(
        tmp_path
    ).encode(text)
