"""Level 2: what only its training has: gradient checkpointing, kernels, float16, GPUs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.parity.training_cases import Level, values
from tests.shared_data.test_data_loader import documents, write_tokens
from v2_handwritten.pretrain.components import training
from v2_handwritten.pretrain.components.precision import LossScaler


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradient_checkpointing_changes_no_bit_of_a_training(family: str, tmp_path: Path) -> None:
    """The exercise of gradient_checkpointing.md: with dropout, too."""
    path = write_tokens(tmp_path, documents(0, 60))
    ends = []
    for checkpointing in ("false", "true"):
        made = Level("v2", family, dropout=0.2)
        rows = made.fit(path, tmp_path / checkpointing, f"gradient_checkpointing={checkpointing}")
        assert made.model.gradient_checkpointing == (checkpointing == "true")
        ends.append((values(rows, "loss"), made.weights().tolist()))
    assert ends[0] == ends[1]


def test_plain_fused_and_library_kernels_train_to_the_same_weights(tmp_path: Path) -> None:
    path = write_tokens(tmp_path, documents(0, 60))
    ends = []
    for kernels in ("plain", "fused", "library"):
        made = Level("v2")
        made.model.kernels = kernels
        made.fit(path, tmp_path / kernels)
        ends.append(made.weights())
    for other in ends[1:]:
        np.testing.assert_allclose(ends[0], other, atol=2e-5)
        assert not np.array_equal(ends[0], other), "other kernels must have been at work"


@pytest.mark.parametrize("several", [False, True], ids=["one loss", "several losses a step"])
def test_an_overflow_in_float16_leaves_the_update_out(
    several: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LossScaler", lambda enabled: LossScaler(enabled, initial_scale=2.0**28))
    made = Level("v2")

    def losses(batch: Any) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        for _ in range(3):
            yield made.loss(batch), {"tokens": 1}

    options = ("max_steps=20", "fp16=true", "save_steps=0")
    path = write_tokens(tmp_path, documents(0, 200))
    rows = made.fit(path, tmp_path / "run", *options, step=losses if several else None)
    left_out = [row["step"] for row in rows if "grad_norm" not in row]
    assert left_out[:1] == [1]
    assert 2 <= len(left_out) <= 14, "only until the scale has come down"
    assert np.isfinite(made.weights()).all()
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_gpu_batch_travels_from_pinned_memory(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    made = Level("v2")
    made.model.to("cuda")
    path = write_tokens(tmp_path, documents(0, 60))

    def step(batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
        return made.model.loss(**training.model_inputs(batch, torch.device("cuda"))), {}

    assert np.isfinite(values(made.fit(path, tmp_path / "run", "bf16=true", step=step), "loss")).all()
