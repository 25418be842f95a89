"""AdamW against `torch.optim.AdamW`; what is decayed stands in `test_training.py`, against the Trainer of transformers."""

from typing import Any

import numpy as np
import pytest
import torch

from shared_data.errors import UserError
from shared_data.training.parameter_groups import parameter_groups
from tests.parity.arrays import array
from tests.parity.optimizer_cases import LEVELS, STEPS, check_resumed, groups, parameters, run, unmoved
from tests.parity.recorder import ParityRecorder, as_array
from tests.parity.training_cases import Level, level_module

SHAPES: list[tuple[int, ...]] = [
    (7, 5),
    (33,),
    (200, 101),
    (1, 3),
]  # the third is longer than a piece of level 3
OURS = LEVELS[1:]


def make(level: str, dtype: Any = np.float64, decay: float = 0.1) -> tuple[list[Any], Any]:
    """Parameters and optimizer; the first two tensors are decayed, the others not."""
    made = parameters(level, SHAPES, dtype)
    if level == "v1":
        halves = [{"params": made[:2], "weight_decay": decay}, {"params": made[2:], "weight_decay": 0.0}]
        return made, [torch.optim.AdamW(halves, 1e-2, (0.9, 0.95), 1e-8)]
    parts = groups([(made[:2], "ab", {"weight_decay": decay}), (made[2:], "cd", {"weight_decay": 0.0})])
    return made, level_module(level, "pretrain.components.optimizers").AdamW(parts, 1e-2, (0.9, 0.95), 1e-8)


@pytest.mark.parametrize("level", OURS)
def test_the_first_step_is_the_learning_rate_whatever_the_gradient(level: str) -> None:
    """The exercise of optimizers.md: without decay the first update is -η sign(g), because m̂ = g and v̂ = g²."""
    for scale in (1e-4, 1.0, 1e4):
        made, optimizer = make(level, decay=0.0)
        before = [as_array(parameter).copy() for parameter in made]
        gradients = [scale * array(50 + i, *shape) for i, shape in enumerate(SHAPES)]
        for parameter, gradient in zip(made, gradients, strict=True):
            parameter.grad = gradient if level == "v3" else torch.from_numpy(gradient)
        optimizer.step()
        for old, parameter, gradient in zip(before, made, gradients, strict=True):
            allowed = 1e-2 * 1e-8 / np.abs(gradient).min()
            np.testing.assert_allclose(as_array(parameter) - old, -1e-2 * np.sign(gradient), atol=allowed)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-15), (np.float32, 5e-7)])
def test_adamw_agrees_with_torch_after_25_steps(dtype: Any, tolerance: float, parity: ParityRecorder) -> None:
    made = {level: make(level, dtype) for level in LEVELS}
    after = {level: run(level, optimizer, start) for level, (start, optimizer) in made.items()}
    assert all(values.dtype == dtype for values in after.values())
    for a, b in (("v1", "v2"), ("v1", "v3"), ("v2", "v3")):
        parity(
            component="AdamW", quantity=f"parameters after {STEPS} steps", levels=f"{a}-{b}",
            actual=after[b], expected=after[a], tolerance=tolerance,
        )  # fmt: skip
    if dtype == np.float64:
        library = [made["v1"][1][0].state[p] for p in made["v1"][0]]
        for ours, theirs in (("first_moment", "exp_avg"), ("second_moment", "exp_avg_sq")):
            for level in OURS:
                state = made[level][1].state_dict()
                parity(
                    component="AdamW", quantity=ours, levels=f"v1-{level}", tolerance=2e-15,
                    actual=np.concatenate([np.ravel(state[f"{ours}.{name}"]) for name in "abcd"]),
                    expected=np.concatenate([s[theirs].numpy().ravel() for s in library]),
                )  # fmt: skip


@pytest.mark.parametrize("level", OURS)
def test_a_restored_optimizer_continues_bit_for_bit(level: str) -> None:
    check_resumed(level, lambda: make(level, np.float32))


@pytest.mark.parametrize("level", OURS)
def test_a_parameter_without_gradient_stays_as_it_is(level: str) -> None:
    made, optimizer = make(level)
    assert unmoved(level, optimizer, made, frozen=0) == [True, False, False, False]


@pytest.mark.parametrize("level", OURS)
def test_the_state_of_another_model_is_refused(level: str) -> None:
    _, optimizer = make(level)
    state = dict(optimizer.state_dict())
    state["first_moment.a"] = state["first_moment.b"]
    with pytest.raises(UserError, match="another shape"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_matrices_and_embeddings_are_decayed_norms_and_biases_are_not(family: str) -> None:
    for level in OURS:
        model = Level(level, family).model
        decayed, others = parameter_groups(model, 0.1)
        assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
        assert sorted([*decayed["names"], *others["names"]]) == sorted(
            name for name, _ in model.named_parameters()
        )
        assert any("wte" in name or "embed_tokens" in name for name in decayed["names"])
        kinds = ("norm", "ln_", "bias")
        assert not any(kind in name for name in decayed["names"] for kind in kinds)
        assert all(any(kind in name for kind in kinds) for name in others["names"])
