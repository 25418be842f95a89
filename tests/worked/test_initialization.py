"""The variance of a sum, and what follows from it for a new model, as in shared_data/model_files/initialization.md."""

import itertools
import math
from dataclasses import replace

import numpy as np
import torch

from shared_data.model_files.config import ModelConfig
from shared_data.model_files.initialization import initial_weights
from tests.worked import agrees
from v2_handwritten.models.transformer import new_model

PAGE = "shared_data/model_files/initialization.md"

# A GPT-2 with C = 64 and F = 4 C = 256, whose output matrix is not the embedding.
CONFIG = ModelConfig(
    model_type="gpt2", vocab_size=512, hidden_size=64, num_hidden_layers=8, tie_word_embeddings=False
)


def test_variance_of_a_sum() -> None:
    x = np.array([1.0, 3.0])
    weights = np.array(list(itertools.product([0.5, -0.5], repeat=2)))  # each sign as probable as the other
    y = weights @ x
    cross = 2 * (weights * x).prod(-1)
    agrees(PAGE, "weights", np.column_stack([weights, y, y**2, ((weights * x) ** 2).sum(-1), cross]))
    assert (y**2).mean() == 0.5**2 * (x**2).sum() == 2.5


def test_standard_deviations_of_the_parameters() -> None:
    weights = dict(initial_weights(CONFIG, seed=0))
    block = "transformer.h.0"
    matrices = [
        "transformer.wte",
        f"{block}.attn.c_attn",
        f"{block}.attn.c_proj",
        f"{block}.mlp.c_fc",
        f"{block}.mlp.c_proj",
    ]
    drawn = [weights[f"{name}.weight"].std() for name in matrices]
    small = 0.02 / math.sqrt(2 * 8)
    rule = [0.02, 0.02, small, 0.02, small]
    agrees(PAGE, "standard deviation", np.column_stack([rule, drawn]), digits=4)


def test_residual_stream_at_any_depth() -> None:
    rows = []
    for L in (1, 4, 16):
        weights = dict(initial_weights(replace(CONFIG, num_hidden_layers=L), seed=0))
        generator = np.random.default_rng(0)
        stream = np.zeros((256, 64))  # 256 tokens
        for name, weight in weights.items():
            if name.endswith("c_proj.weight"):  # two in each layer; their inputs have a mean square of 1
                stream += generator.choice([-1.0, 1.0], (256, len(weight))) @ weight
        scaled = (stream**2).mean()
        rows.append([0.064, scaled, 2 * L * 0.064, 2 * L * scaled])
    agrees(PAGE, "mean square of the stream", rows)


def test_first_loss() -> None:
    ids = torch.from_numpy(np.random.default_rng(0).integers(512, size=(8, 129)))
    rows = []
    for spread in (0.02, 0.1, 0.2):
        model = new_model(replace(CONFIG, num_hidden_layers=1, initializer_range=spread), seed=0)
        with torch.no_grad():
            loss = model.loss(ids[:, :-1], ids[:, 1:])
        rows.append([64 * spread**2, math.log(512) + 64 * spread**2 / 2, loss])
    agrees(PAGE, "first loss", rows)
