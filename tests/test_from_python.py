"""The levels as libraries: the same names at each, a dozen lines from a new model to its text, nothing loaded before it is used."""

import importlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from shared_data.settings import load_settings

LEVELS = ("v1_quick", "v2_handwritten", "v3_numpy_deep")


@pytest.mark.parametrize(("level", "tensor"), [("v2_handwritten", torch.tensor), ("v3_numpy_deep", np.array)])
def test_a_new_model_learns_a_sequence_by_heart_and_continues_it(level: str, tensor: Any) -> None:
    library = importlib.import_module(level)
    config = library.ModelConfig(vocab_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = library.new_model(config, seed=0)
    optimizer = library.make_optimizer(
        model, load_settings("smoke", ["pretrain.learning_rate=0.02"]).pretrain
    )
    batch = tensor([[1, 2, 3, 4, 5] * 3] * 2)
    losses = [library.train_step(model, optimizer, batch) for _ in range(20)]
    assert losses[-1] < losses[0] / 4
    new_ids = library.generate(model, [[1, 2]], max_new_tokens=5, temperature=0.0)
    assert new_ids == [[3, 4, 5, 1, 2]]


def test_every_name_is_there_and_importing_a_level_loads_no_library() -> None:
    """Hence `--help` in under a second."""
    names = [importlib.import_module(level).__all__ for level in LEVELS]
    assert [name for name in names[1] if name != "inspect"] == names[2]  # a tool, and tools are level 2's
    assert {"generate", "load_model", "load_tokenizer"} <= set(names[0])
    for level, exported in zip(LEVELS, names, strict=True):
        assert all(callable(getattr(importlib.import_module(level), name)) for name in exported)
    heavy = "{'torch', 'numpy', 'transformers'} & set(sys.modules)"
    code = f"import sys, {', '.join(LEVELS)}; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_a_level_does_not_have_is_an_attribute_error() -> None:
    for level in LEVELS:
        with pytest.raises(AttributeError, match=f"module '{level}' has no attribute 'nothing'"):
            _ = importlib.import_module(level).nothing
