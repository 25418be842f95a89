"""AdamW against `torch.optim.AdamW`, and which parameters are decayed against the Trainer of transformers."""

import importlib
from typing import Any

import numpy as np
import pytest
import torch

import v1_quick.pretrain.components.optimizers as v1
import v2_handwritten.pretrain.components.optimizers as v2
import v3_numpy_deep.pretrain.components.optimizers as v3
from shared_data.errors import UserError
from shared_data.settings import ModelSettings
from tests.parity.arrays import array
from tests.parity.recorder import ParityRecorder, as_array
from v3_numpy_deep.autograd import Parameter

SHAPES = [(7, 5), (33,), (200, 101), (1, 3)]  # the third is longer than a piece of level 3
STEPS = 25


def optimizers(dtype: Any, betas: tuple[float, float] = (0.9, 0.95)) -> dict[str, tuple[Any, list[Any]]]:
    """The same parameters in an optimizer of each level; the first two tensors are decayed, the others not."""
    start = [array(i, *shape, dtype=dtype) for i, shape in enumerate(SHAPES)]
    made = {}
    for level, module in (("v1", v1), ("v2", v2), ("v3", v3)):
        make = Parameter if level == "v3" else lambda a: torch.nn.Parameter(torch.from_numpy(a))
        parameters = [make(a.copy()) for a in start]
        key = "params" if level == "v1" else "parameters"
        halves = [(parameters[:2], ["a", "b"], 0.1), (parameters[2:], ["c", "d"], 0.0)]
        groups = [{key: half, "weight_decay": decay} for half, _, decay in halves]
        if level != "v1":
            groups = [group | {"names": names} for group, (_, names, _) in zip(groups, halves, strict=True)]
        made[level] = (module.AdamW(groups, 1e-2, betas, 1e-8), parameters)
    return made


def set_gradients(level: str, parameters: list[Any], step: int) -> None:
    """The gradients of a step."""
    for i, parameter in enumerate(parameters):
        gradient = array(1000 * step + i, *parameter.shape, dtype=as_array(parameter).dtype)
        parameter.grad = gradient if level == "v3" else torch.from_numpy(gradient)


def run(
    level: str, optimizer: Any, parameters: list[Any], first: int = 0, last: int = STEPS
) -> list[np.ndarray]:
    """The parameters after the steps, with a learning rate that changes."""
    for step in range(first, last):
        set_gradients(level, parameters, step)
        rate = 1e-2 * (1 - step / STEPS)
        if level == "v1":
            for group in optimizer.param_groups:
                group["lr"] = rate
        optimizer.learning_rate = rate
        optimizer.step()
    return [as_array(parameter) for parameter in parameters]


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-15), (np.float32, 5e-7)])
def test_adamw_agrees_with_torch_after_25_steps(dtype: Any, tolerance: float, parity: ParityRecorder) -> None:
    made = optimizers(dtype)
    after = {level: np.concatenate([a.ravel() for a in run(level, *made[level])]) for level in made}
    assert all(values.dtype == dtype for values in after.values())
    for a, b in (("v1", "v2"), ("v1", "v3"), ("v2", "v3")):
        parity(
            component="AdamW",
            quantity=f"parameters after {STEPS} steps",
            levels=f"{a}-{b}",
            actual=after[b],
            expected=after[a],
            tolerance=tolerance,
        )


def test_moments_agree_with_torch(parity: ParityRecorder) -> None:
    made = optimizers(np.float64)
    for level in made:
        run(level, *made[level])
    torch_state = [made["v1"][0].state[p] for p in made["v1"][1]]
    for ours, theirs in (("first_moment", "exp_avg"), ("second_moment", "exp_avg_sq")):
        expected = np.concatenate([s[theirs].numpy().ravel() for s in torch_state])
        for level in ("v2", "v3"):
            state = made[level][0].state_dict()
            actual = np.concatenate([np.asarray(state[f"{ours}.{name}"]).ravel() for name in "abcd"])
            parity(
                component="AdamW",
                quantity=ours,
                levels=f"v1-{level}",
                actual=actual,
                expected=expected,
                tolerance=2e-15,
            )


@pytest.mark.parametrize("level", ["v2", "v3"])
def test_a_restored_optimizer_continues_bit_for_bit(level: str) -> None:
    whole, parameters = optimizers(np.float32)[level]
    for step in range(10):
        set_gradients(level, parameters, step)
        whole.step()
    saved = {name: np.array(value) for name, value in whole.state_dict().items()}
    resumed, copies = optimizers(np.float32)[level]
    for copy, parameter in zip(copies, parameters, strict=True):
        as_array(copy)[...] = as_array(parameter)
    resumed.load_state_dict(saved if level == "v3" else {k: torch.from_numpy(v) for k, v in saved.items()})
    for a, b in zip(run(level, whole, parameters, 10), run(level, resumed, copies, 10), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("level", ["v2", "v3"])
def test_a_parameter_without_gradient_stays_as_it_is(level: str) -> None:
    optimizer, parameters = optimizers(np.float32)[level]
    set_gradients(level, parameters, 0)
    parameters[0].grad = None
    before = [as_array(parameter).copy() for parameter in parameters]
    optimizer.step()
    same = [np.array_equal(as_array(p), old) for p, old in zip(parameters, before, strict=True)]
    assert same == [True, False, False, False]
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.parametrize("level", ["v2", "v3"])
def test_the_state_of_another_model_is_refused(level: str) -> None:
    optimizer, _ = optimizers(np.float32)[level]
    state = dict(optimizer.state_dict())
    state["first_moment.a"] = state["first_moment.b"]
    with pytest.raises(UserError, match="another shape"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("level", ["v2", "v3"])
def test_the_first_step_is_the_learning_rate_whatever_the_size_of_the_gradient(level: str) -> None:
    """The exercise of optimizers.md: without decay the first update is -η sign(g), because m̂ = g and v̂ = g²."""
    for scale in (1e-4, 1.0, 1e4):
        optimizer, parameters = optimizers(np.float64)[level]
        optimizer.groups[0]["weight_decay"] = 0.0
        before = [as_array(parameter).copy() for parameter in parameters]
        gradients = [scale * array(50 + i, *shape) for i, shape in enumerate(SHAPES)]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient if level == "v3" else torch.from_numpy(gradient)
        optimizer.step()
        for old, parameter, gradient in zip(before, parameters, gradients, strict=True):
            moved = as_array(parameter) - old
            np.testing.assert_allclose(
                moved, -1e-2 * np.sign(gradient), atol=1e-2 * 1e-8 / np.abs(gradient).min()
            )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_level_decays_what_the_trainer_decays(family: str) -> None:
    settings = ModelSettings(model_type=family, hidden_size=16, num_attention_heads=2, num_hidden_layers=2)  # type: ignore[arg-type]
    decayed = {}
    for level in ("v1_quick", "v2_handwritten", "v3_numpy_deep"):
        module = importlib.import_module(f"{level}.pretrain.components.optimizers")
        config = importlib.import_module(f"{level}.models.config").ModelConfig.from_settings(settings, 300)
        model = importlib.import_module(f"{level}.models.transformer").Transformer(config)
        model = getattr(model, "library", model)
        groups = module.parameter_groups(model, 0.1)
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
        members = [{id(p) for p in group.get("params", group.get("parameters"))} for group in groups]
        names = dict(model.named_parameters())
        assert members[0] | members[1] == {id(p) for p in names.values()}
        assert not members[0] & members[1]
        decayed[level] = {name for name, parameter in names.items() if id(parameter) in members[0]}
    assert decayed["v1_quick"] == decayed["v2_handwritten"] == decayed["v3_numpy_deep"]
    assert any("wte" in name or "embed_tokens" in name for name in decayed["v1_quick"])
    assert not any("norm" in name or "ln_" in name or "bias" in name for name in decayed["v1_quick"])
