"""Levels 2 and 3: a loaded model's matrices lie in memory as a decode step reads them, once, and as training reads them after that."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared_data.model_files.config import ModelConfig
from shared_data.settings import PretrainSettings
from tests.parity.training_cases import level_module
from v2_handwritten.models.checkpoint import save_model
from v2_handwritten.models.transformer import new_model

LEVELS = ("v2", "v3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of about 60 MB, mostly blocks, with grouped heads."""
    sizes: dict[str, Any] = {"vocab_size": 4000, "hidden_size": 512, "intermediate_size": 1408}
    config = ModelConfig(num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2, **sizes)
    path = tmp_path_factory.mktemp("layout")
    save_model(new_model(config, 0), path)
    return path


def weight(layer: Any) -> np.ndarray:
    """The numbers of a layer's matrix, in the memory where they lie."""
    data = layer.weight.data
    return data.numpy() if isinstance(data, torch.Tensor) else data


@pytest.mark.parametrize("level", LEVELS)
def test_matrices_that_read_the_same_vector_are_one(level: str, folder: Path) -> None:
    model = level_module(level, "models.checkpoint").load_model(folder)
    side_by_side = level_module(level, "models.weight_layout").side_by_side
    block = model.body.layers[0]
    for layers in (
        [block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj],
        [block.mlp.gate_proj, block.mlp.up_proj],
    ):
        parts = [layer.weight.data.T for layer in layers]
        (joined,) = side_by_side(parts)
        assert np.array_equal(np.asarray(joined), np.concatenate([np.asarray(part) for part in parts], 1))
        assert len(side_by_side(parts[::-1])) == len(parts)  # in another order they are no matrix
    for layer in (block.self_attn.o_proj, model.lm_head):
        assert weight(layer).flags.f_contiguous


@pytest.mark.parametrize("level", LEVELS)
def test_an_optimizer_finds_rows_and_the_same_numbers(level: str, folder: Path) -> None:
    load_model = level_module(level, "models.checkpoint").load_model
    model, before = load_model(folder), load_model(folder)
    level_module(level, "pretrain.components.muon").make_optimizer(model, PretrainSettings())
    old = dict(before.named_parameters())
    for name, parameter in model.named_parameters():
        array = np.asarray(parameter.data)
        assert array.flags.c_contiguous, name
        assert np.array_equal(array, np.asarray(old[name].data)), name


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
@pytest.mark.parametrize("level", LEVELS)
def test_a_process_that_writes_holds_every_weight_once(level: str, folder: Path) -> None:
    """At its peak, while it loads and while it writes: 15 % more than the weights, and what the libraries take at first use."""
    package = {"v2": "v2_handwritten", "v3": "v3_numpy_deep"}[level]
    program = f"""
        import sys
        from {package} import generate, load_model, new_model, ModelConfig
        def peak():
            (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
            return int(line.split()[1]) * 1024
        generate(new_model(ModelConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1), 0), [[1]], max_new_tokens=4)
        before = peak()
        generate(load_model(sys.argv[1]), [[1, 2, 3]], max_new_tokens=4)
        print(peak() - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size = (folder / "model.safetensors").stat().st_size
    assert int(done.stdout) <= 1.15 * size + 8e6, int(done.stdout) / size
