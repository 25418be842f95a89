"""The levels as libraries: the same names at each, a dozen lines from a new model to its text, nothing loaded before it is used."""

import importlib
import json
import re
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


# In a process of its own: here, annotations are checked, and these arguments would not come as far as the functions.
MISTAKES = """
import importlib, json, sys
import numpy as np
import torch
from shared_data.settings import load_settings

level, array, other = sys.argv[1], *((torch.tensor, np.array) if "v2" in sys.argv[1] else (np.array, torch.tensor))
library = importlib.import_module(level)
config = library.ModelConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
model = library.new_model(config, seed=0)
optimizer = library.make_optimizer(model, load_settings("smoke").pretrain)
before = [np.array(weight.tolist() if "v2" in level else weight.data) for weight in model.parameters()]

def says(function, *arguments, **options):
    try:
        return repr(function(*arguments, **options))
    except ValueError as error:
        return f"{type(error).__name__}: {error}"

said = [says(library.new_model, config, seed) for seed in (-1, 10**23)]
for batch in ([[1, 2]], other([[1, 2]]), array([1, 2]), array([[1], [2]]), array([[1.0, 2.0]]), array([[1, 8]]), array([[-1, 2]])):
    said.append(says(library.train_step, model, optimizer, batch))
for prompts in ("Once", ["Once"], [1, 2], [[8]], [[-1]]):
    said.append(says(library.generate, model, prompts, max_new_tokens=1))
for options in ({"temperature": -1}, {"temperature": float("nan")}, {"temperature": 1e-320}, {"max_new_tokens": -1}, {"seed": -1}):
    said.append(says(library.generate, model, [[1]], **{"max_new_tokens": 1} | options))
after = [np.array(weight.tolist() if "v2" in level else weight.data) for weight in model.parameters()]
assert all(map(np.array_equal, before, after)), "nothing was learned from a mistake"
for temperature in (1e-30, 1e30):
    library.generate(model, [[1]], max_new_tokens=1, temperature=temperature)
library.train_step(model, optimizer, array([[1, 2]]))
print(json.dumps(said))
"""
REMEDIES = [
    *["UserError: the seed is .*; choose an integer from 0 to"] * 2,
    "UserError: the batch is a list, this level trains on a .*; make one",
    "UserError: the batch is a (Tensor|ndarray), this level trains on a .*; make one",
    r"UserError: the batch has the shape \[2\], not \[B, T \+ 1\]; give rows",
    r"UserError: the batch has the shape \[2, 1\], not \[B, T \+ 1\]; give rows",
    "UserError: the batch holds float(32|64), not token ids; give",
    "UserError: the batch has the id 8, and the model's ids are 0 to 7; use",
    "UserError: the batch has the id -1, and the model's ids are 0 to 7; use",
    "UserError: the prompts are 'Once', not a list; pass",
    *["UserError: a prompt is .*, not integers; pass a list of ids for each prompt"] * 2,
    *["UserError: a prompt has the id (8|-1), and the model's ids are 0 to 7; use"] * 2,
    *["UserError: temperature .* is not from 1e-30 to 1e[+]30; choose"] * 3,
    "UserError: max_new_tokens is -1; choose",
    "UserError: the seed is -1; choose",
]


@pytest.mark.parametrize("level", LEVELS[1:])
def test_an_argument_that_cannot_be_meant_is_a_user_error(level: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", MISTAKES, level], stdout=subprocess.PIPE, check=True
    )
    said = json.loads(done.stdout)
    for sentence, pattern in zip(said, REMEDIES, strict=True):
        assert re.match(pattern, sentence), sentence
