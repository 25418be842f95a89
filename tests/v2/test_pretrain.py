"""Level 2: what only its training loop has."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parity.test_data_loader import documents, write_tokens
from tests.parity.test_training_loop import Level, flat
from v2_handwritten.pretrain.components import training_loop
from v2_handwritten.pretrain.components.precision import LossScaler


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_activation_checkpointing_changes_no_bit_of_a_training_run(family: str, tmp_path: Path) -> None:
    """The exercise of activation_checkpointing.md: with dropout, too."""
    path = write_tokens(tmp_path, documents(0, 60))
    ends = []
    for checkpointing in (False, True):
        made = Level("v2_handwritten", family, dropout=0.2)
        steps = made.train(path, activation_checkpointing=checkpointing)
        assert made.model.gradient_checkpointing == checkpointing
        ends.append(([step.loss for step in steps], flat(made.weights())))
    assert ends[0][0] == ends[1][0]
    np.testing.assert_array_equal(ends[0][1], ends[1][1])


def test_the_librarys_attention_trains_to_the_same_weights(tmp_path: Path) -> None:
    path = write_tokens(tmp_path, documents(0, 60))
    ends = []
    for kernel in ("handwritten", "library"):
        made = Level("v2_handwritten")
        made.train(path, attention_kernel=kernel)
        assert made.model.attention_kernel == kernel
        ends.append(flat(made.weights()))
    np.testing.assert_allclose(ends[0], ends[1], atol=2e-5)
    assert not np.array_equal(*ends), "two kernels must have been at work"


def test_an_overflow_in_float16_leaves_the_update_out_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        training_loop, "LossScaler", lambda enabled: LossScaler(enabled, initial_scale=2.0**28)
    )
    made = Level("v2_handwritten")
    steps = made.train(write_tokens(tmp_path, documents(0, 200)), steps=20, precision="float16")
    left_out = [step.number for step in steps if not np.isfinite(step.gradient_norm)]
    assert left_out[0] == 1
    assert 2 <= len(left_out) <= 14, "only until the scale has come down"
    assert np.isfinite(flat(made.weights())).all()
    assert steps[-1].loss < steps[0].loss


def test_a_gpu_batch_travels_from_pinned_memory(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    made = Level("v2_handwritten")
    made.model.to("cuda")
    steps = made.train(write_tokens(tmp_path, documents(0, 60)), precision="bfloat16")
    assert np.isfinite([step.loss for step in steps]).all()
