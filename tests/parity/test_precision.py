"""Mixed precision: the loss scaler against torch's GradScaler, and 16-bit training against the Trainer's and float32."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shared_data.errors import UserError
from tests.parity.recorder import ParityRecorder
from tests.parity.test_data_loader import documents, write_tokens
from tests.parity.test_training_loop import Level
from v2_handwritten.pretrain.components.precision import LossScaler


def test_the_loss_scale_moves_as_torchs_grad_scaler_moves_it(parity: ParityRecorder) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=4)
    ours = LossScaler(enabled=True, initial_scale=2.0**16, growth_interval=4)
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    scales: dict[str, list[float]] = {"theirs": [], "ours": []}
    overflows = np.random.default_rng(0).random(60) < 0.15
    for overflow in overflows:
        theirs.scale((parameter * (float("inf") if overflow else 1.0)).sum()).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        ours.update(bool(overflow))
        scales["theirs"].append(np.log2(theirs.get_scale()))
        scales["ours"].append(np.log2(ours.scale))
    assert len(set(scales["ours"])) > 3, "it must have moved up and down"
    parity(
        component="precision",
        quantity="log2 of the loss scale",
        levels="v1-v2",
        actual=scales["ours"],
        expected=scales["theirs"],
        tolerance=0,
    )


def test_scaling_rescues_gradients_that_float16_rounds_to_zero() -> None:
    """The exercise of precision.md: 2^-26 is below float16's smallest number, 2^-26 times 2^16 is not."""
    tiny, scaler = 2.0**-26, LossScaler(enabled=True)

    def gradient(scale: float) -> torch.Tensor:
        parameter = torch.nn.Parameter(torch.ones(4))
        half = parameter.to(torch.float16)  # its gradient is float16
        (half.sum() * (tiny * scale)).backward() if scale == 1.0 else (
            (half.sum().float() * tiny) * scale
        ).backward()
        assert parameter.grad is not None
        scaler.unscale([parameter]) if scale != 1.0 else None
        return parameter.grad

    assert (gradient(1.0) == 0).all()
    assert (gradient(scaler.scale) == tiny).all()


def test_a_hopeless_overflow_is_a_user_error_and_a_resumed_scaler_continues() -> None:
    scaler = LossScaler(enabled=True)
    for _ in range(30):
        scaler.update(overflow=True)
    assert scaler.scale == 2.0**-14
    with pytest.raises(UserError, match="overflow float16"):
        scaler.update(overflow=True)
    resumed = LossScaler(enabled=True)
    resumed.load_state_dict(scaler.state_dict())
    assert resumed.state_dict() == scaler.state_dict()
    off = LossScaler(enabled=False)
    off.update(overflow=True)
    assert off.scale == 1.0
    assert off.state_dict() == {}


def test_sixteen_bit_training_follows_the_trainer_and_float32(tmp_path: Path, parity: ParityRecorder) -> None:
    path = write_tokens(tmp_path, documents(0, 300))
    curves = {}
    for level, precision in (
        ("v1_quick", "bfloat16"),
        ("v2_handwritten", "bfloat16"),
        ("v2_handwritten", "float16"),
        ("v2_handwritten", "float32"),
    ):
        made = Level(level)
        steps = made.train(path, steps=15, precision=precision)
        assert all(weights.dtype == np.float32 for weights in made.weights().values()), "the master copy"
        curves[level[:2], precision] = [step.loss for step in steps]
    exact = curves["v2", "float32"]
    assert curves["v2", "float16"] != exact != curves["v2", "bfloat16"], "16 bits must have been at work"
    row = {"component": "precision", "tolerance": 3e-3}
    for levels, other in (("v1-v2", curves["v1", "bfloat16"]), ("v2", exact)):
        what = "the Trainer's" if levels == "v1-v2" else "float32"
        parity(
            quantity=f"15 losses, bfloat16 against {what}",
            levels=levels,
            actual=curves["v2", "bfloat16"],
            expected=other,
            **row,
        )
    # float16 leaves out updates until the scale has come down, so it is a step behind; later it is as good.
    assert np.mean(curves["v2", "float16"][-5:]) == pytest.approx(np.mean(exact[-5:]), rel=0.04)


def test_level_3_refuses_sixteen_bits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="precision=float32"):
        Level("v3_numpy_deep").train(write_tokens(tmp_path, documents(0, 60)), precision="bfloat16")
