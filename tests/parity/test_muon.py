"""Muon against `torch.optim.Muon` and `torch.optim.AdamW`, and which parameters are whose."""

import importlib
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import _muon as library

import v1_quick.pretrain.components.muon as v1
import v2_handwritten.pretrain.components.muon as v2
import v3_numpy_deep.pretrain.components.muon as v3
from shared_data.errors import UserError
from shared_data.settings import ModelSettings, PretrainSettings
from tests.parity.arrays import array
from tests.parity.recorder import ParityRecorder, as_array
from tests.parity.test_optimizers import STEPS, run
from v3_numpy_deep.autograd import Parameter

LEVELS = {"v1": v1, "v2": v2, "v3": v3}
SHAPES = [(7, 5), (33,), (24, 40), (40, 24), (9, 9), (24, 40)]  # the last four are hidden matrices


@pytest.fixture
def without_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch rounds to bfloat16 before it makes a matrix orthogonal; the algorithm alone is to be compared."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)


def optimizers(dtype: Any) -> dict[str, tuple[Any, list[Any]]]:
    """The same parameters in an optimizer of each level."""
    made = {}
    for level, module in LEVELS.items():
        make = Parameter if level == "v3" else lambda a: torch.nn.Parameter(torch.from_numpy(a))
        parameters = [make(array(i, *shape, dtype=dtype)) for i, shape in enumerate(SHAPES)]
        key = "params" if level == "v1" else "parameters"
        parts = [(parameters[:1], "a", 0.1), (parameters[1:2], "b", 0.0), (parameters[2:], "cdef", 0.05)]
        groups: list[dict[str, Any]] = [{key: part, "weight_decay": decay} for part, _, decay in parts]
        groups[-1]["hidden"] = True
        if level != "v1":
            groups = [g | {"names": list(names)} for g, (_, names, _) in zip(groups, parts, strict=True)]
        made[level] = (module.Muon(groups, 1e-2, (0.9, 0.95), 1e-8, 0.9), parameters)
    return made


def _orthogonal(level: str, matrix: np.ndarray) -> np.ndarray:
    """What a level makes of a matrix."""
    if level == "v3":
        return v3.orthogonalize(matrix)
    if level == "v2":
        return v2.orthogonalize(torch.from_numpy(matrix)[None])[0].numpy()
    made = library._zeropower_via_newtonschulz(torch.from_numpy(matrix), v2.COEFFICIENTS, v2.ITERATIONS, 1e-7)
    return made.to(torch.float64).numpy()


@pytest.mark.usefixtures("without_rounding")
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (9, 9)])
def test_orthogonalization_agrees_with_torch(shape: tuple[int, int], parity: ParityRecorder) -> None:
    matrix = array(1, *shape, dtype=np.float64)
    for level in ("v2", "v3"):
        parity(
            component="Muon",
            quantity=f"orthogonal momentum {shape[0]} x {shape[1]}",
            levels=f"v1-{level}",
            actual=_orthogonal(level, matrix),
            expected=_orthogonal("v1", matrix),
            tolerance=1e-14,
        )


def test_orthogonalization_agrees_with_torch_as_it_rounds(parity: ParityRecorder) -> None:
    """With torch's bfloat16, whose numbers have eight binary digits; the entries are about 0.2."""
    matrix = array(1, 24, 40, dtype=np.float64)
    expected = _orthogonal("v1", matrix)
    for level in ("v2", "v3"):
        parity(
            component="Muon",
            quantity="orthogonal momentum, against bfloat16",
            levels=f"v1-{level}",
            actual=_orthogonal(level, matrix),
            expected=expected,
            tolerance=0.01,
        )


@pytest.mark.parametrize("level", ["v2", "v3"])
def test_the_singular_vectors_stay_and_the_values_come_near_one(level: str) -> None:
    """Also for a matrix whose singular values lie three orders of magnitude apart, as those of gradients do."""
    rng = np.random.default_rng(3)
    U, V = (np.linalg.qr(rng.normal(size=(n, 12)))[0] for n in (12, 30))
    made = U.T @ _orthogonal(level, U @ np.diag(np.geomspace(1.0, 0.01, 12)) @ V.T) @ V
    assert np.all((np.diag(made) > 0.6) & (np.diag(made) < 1.3)), np.diag(made)
    np.testing.assert_allclose(made - np.diag(np.diag(made)), 0, atol=1e-12)


@pytest.mark.usefixtures("without_rounding")
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-14), (np.float32, 2e-6)])
def test_muon_agrees_with_torch_after_25_steps(dtype: Any, tolerance: float, parity: ParityRecorder) -> None:
    after = {
        level: np.concatenate([a.ravel() for a in run(level, *made)])
        for level, made in optimizers(dtype).items()
    }
    assert all(values.dtype == dtype for values in after.values())
    for a, b in (("v1", "v2"), ("v1", "v3"), ("v2", "v3")):
        parity(
            component="Muon",
            quantity=f"parameters after {STEPS} steps",
            levels=f"{a}-{b}",
            actual=after[b],
            expected=after[a],
            tolerance=tolerance,
        )


def test_matrices_of_one_shape_are_made_orthogonal_together_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    together = run("v2", *optimizers(np.float64)["v2"])
    monkeypatch.setattr(v2, "_STACK", 1)
    for a, b in zip(together, run("v2", *optimizers(np.float64)["v2"]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-14)


@pytest.mark.parametrize("level", LEVELS)
def test_a_restored_optimizer_continues_bit_for_bit(level: str) -> None:
    whole, parameters = optimizers(np.float32)[level]
    run(level, whole, parameters, 0, 10)
    resumed, copies = optimizers(np.float32)[level]
    for mine, parameter in zip(copies, parameters, strict=True):
        as_array(mine)[...] = as_array(parameter)
    resumed.load_state_dict(deepcopy(whole.state_dict()))
    for a, b in zip(run(level, whole, parameters, 10), run(level, resumed, copies, 10), strict=True):
        np.testing.assert_array_equal(a, b)


def test_level_3_continues_a_run_of_level_2() -> None:
    """The same names for the same numbers."""
    two, three = (optimizers(np.float32)[level][0].state_dict() for level in ("v2", "v3"))
    assert {name: tuple(value.shape) for name, value in two.items()} == {
        name: value.shape for name, value in three.items()
    }
    assert {f"momentum.{name}" for name in "cdef"} | {"first_moment.a", "second_moment.b"} <= set(two)


@pytest.mark.parametrize("level", ["v2", "v3"])
def test_a_parameter_without_gradient_stays_as_it_is(level: str) -> None:
    optimizer, parameters = optimizers(np.float32)[level]
    before = [as_array(parameter).copy() for parameter in parameters]
    run(level, optimizer, parameters, 0, 1)
    first = [as_array(parameter).copy() for parameter in parameters]
    assert not any(np.array_equal(a, b) for a, b in zip(before, first, strict=True))
    parameters[2].grad = None
    optimizer.step()
    same = [np.array_equal(as_array(p), old) for p, old in zip(parameters, first, strict=True)]
    assert same == [False, False, True, False, False, False]
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.parametrize("level", ["v2", "v3"])
def test_the_state_of_adamw_is_refused(level: str) -> None:
    optimizer, _ = optimizers(np.float32)[level]
    state = {name: value for name, value in optimizer.state_dict().items() if not name.startswith("momentum")}
    with pytest.raises(UserError, match="another shape"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_muon_has_the_matrices_between_hidden_states(family: str) -> None:
    """All of a block's, none that reads or writes tokens or positions; with AdamW, all parameters are in its groups."""
    sizes = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "tie_word_embeddings": False,
    }
    settings = ModelSettings(model_type=family, **sizes)  # type: ignore[arg-type]
    hidden = {}
    for level, muon in (("v1_quick", v1), ("v2_handwritten", v2), ("v3_numpy_deep", v3)):
        config = importlib.import_module(f"{level}.models.config").ModelConfig.from_settings(settings, 300)
        model = importlib.import_module(f"{level}.models.transformer").Transformer(config)
        model = getattr(model, "library", model)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        optimizer: Any = muon.choose_optimizer(model, PretrainSettings(optimizer="muon", weight_decay=0.1))  # type: ignore[attr-defined]
        groups = optimizer.param_groups if level == "v1_quick" else [*optimizer.groups, *optimizer.hidden]
        members = [[names[id(p)] for p in group.get("params", group.get("parameters"))] for group in groups]
        assert sorted(name for group in members for name in group) == sorted(names.values())
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.1]
        hidden[level] = set(members[-1])
        plain: Any = muon.choose_optimizer(model, PretrainSettings())  # type: ignore[attr-defined]
        assert not isinstance(plain, muon.Muon)
    assert hidden["v1_quick"] == hidden["v2_handwritten"] == hidden["v3_numpy_deep"]
    assert len(hidden["v1_quick"]) == 2 * (7 if family == "llama" else 4)
    assert all("attn" in name or "mlp" in name for name in hidden["v1_quick"])
