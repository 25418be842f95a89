"""Three levels train 100 steps from the same weights on the same batches: their loss curves are one curve."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shared_data.plots import plot_lines
from tests.parity.recorder import ParityRecorder
from tests.parity.test_data_loader import documents, write_tokens
from tests.parity.test_training_loop import LEVELS, Level

STEPS = 100


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_loss_curves_of_three_levels_are_one_curve(
    tmp_path: Path, parity: ParityRecorder, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """The tiny model, scaled down; accumulation, clipping, warm-up, cosine, decay and document masks all take part.

    With Muon, without torch's rounding to bfloat16, which levels 2 and 3 do without on a CPU.
    """
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    path = write_tokens(tmp_path, documents(0, 1200))
    curves: dict[str, np.ndarray] = {}
    for level in LEVELS:
        made = Level(level, hidden_size=48, num_hidden_layers=2)
        steps = made.train(
            path,
            steps=STEPS,
            batch_size=2,
            gradient_accumulation_steps=2,
            sequence_length=64,
            warmup_steps=10,
            learning_rate=3e-3,
            optimizer=optimizer,
        )
        curves[level] = np.array([step.loss for step in steps])
    assert curves["v2_handwritten"][-10:].mean() < curves["v2_handwritten"][0] - 1.0, "it must have learnt"
    for one, other in (
        ("v1_quick", "v2_handwritten"),
        ("v1_quick", "v3_numpy_deep"),
        ("v2_handwritten", "v3_numpy_deep"),
    ):
        parity(
            component="lockstep" if optimizer == "adamw" else "lockstep, Muon",
            quantity=f"loss of each of {STEPS} steps",
            levels=f"{one[:2]}-{other[:2]}",
            actual=curves[other],
            expected=curves[one],
            tolerance=1e-6,
        )
    if optimizer == "adamw":
        plot_lockstep(curves, Path("runs") / "lockstep.svg")


def plot_lockstep(curves: dict[str, np.ndarray], path: Path) -> None:
    """Draw the loss curves over each other; the title says how far apart they ever are."""
    apart = max(float(np.abs(a - b).max()) for a in curves.values() for b in curves.values())
    numbers = range(1, STEPS + 1)
    plot_lines(
        {level: (list(numbers), curve.tolist()) for level, curve in curves.items()},
        path,
        title=f"three levels, the same batches: never more than {apart:.0e} apart",
        y_label="nats per token",
    )
