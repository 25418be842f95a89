"""Muon against `torch.optim.Muon` beside `torch.optim.AdamW`, and which parameters are whose."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import _muon as library

import v2_handwritten.pretrain.components.muon as v2
import v3_numpy_deep.pretrain.components.muon as v3
from shared_data.errors import UserError
from shared_data.settings import PretrainSettings
from tests.parity.arrays import array
from tests.parity.optimizer_cases import LEVELS, STEPS, check_resumed, groups, parameters, run, unmoved
from tests.parity.recorder import ParityRecorder
from tests.parity.training_cases import Level, level_module

SHAPES: list[tuple[int, ...]] = [
    (7, 5),
    (33,),
    (24, 40),
    (40, 24),
    (9, 9),
    (24, 40),
]  # the last four are hidden matrices
OURS = LEVELS[1:]


@pytest.fixture
def without_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch rounds to bfloat16 before it makes a matrix orthogonal; the algorithm alone is to be compared."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)


def make(level: str, dtype: Any = np.float64) -> tuple[list[Any], Any]:
    """Parameters and optimizer, or torch's two."""
    made = parameters(level, SHAPES, dtype)
    if level == "v1":
        rest = [{"params": made[:1], "weight_decay": 0.1}, {"params": made[1:2], "weight_decay": 0.0}]
        adamw = torch.optim.AdamW(rest, 1e-2, (0.9, 0.95), 1e-8)
        options: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.05, "adjust_lr_fn": "match_rms_adamw"}
        return made, [adamw, torch.optim.Muon(made[2:], 1e-2, **options)]
    hidden = {"weight_decay": 0.05, "hidden": True}
    parts = [
        (made[:1], "a", {"weight_decay": 0.1}),
        (made[1:2], "b", {"weight_decay": 0.0}),
        (made[2:], "cdef", hidden),
    ]
    return made, level_module(level, "pretrain.components.muon").Muon(
        groups(parts), 1e-2, (0.9, 0.95), 1e-8, 0.9
    )


def orthogonal(level: str, matrix: np.ndarray) -> np.ndarray:
    """What a level makes of a matrix."""
    if level == "v3":
        return v3.orthogonalize(matrix)
    if level == "v2":
        return v2.orthogonalize(torch.from_numpy(matrix)[None])[0].numpy()
    made = library._zeropower_via_newtonschulz(torch.from_numpy(matrix), v2.COEFFICIENTS, v2.ITERATIONS, 1e-7)
    return made.to(torch.float64).numpy()


@pytest.mark.parametrize("level", OURS)
def test_singular_vectors_stay_and_singular_values_come_near_one(level: str) -> None:
    """Also for a matrix whose singular values lie two orders of magnitude apart, as those of gradients do."""
    rng = np.random.default_rng(3)
    U, V = (np.linalg.qr(rng.normal(size=(n, 12)))[0] for n in (12, 30))
    made = U.T @ orthogonal(level, U @ np.diag(np.geomspace(1.0, 0.01, 12)) @ V.T) @ V
    assert np.all((np.diag(made) > 0.6) & (np.diag(made) < 1.3)), np.diag(made)
    np.testing.assert_allclose(made - np.diag(np.diag(made)), 0, atol=1e-12)


@pytest.mark.usefixtures("without_rounding")
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (9, 9)])
def test_orthogonalization_agrees_with_torch(shape: tuple[int, int], parity: ParityRecorder) -> None:
    matrix = array(1, *shape, dtype=np.float64)
    for level in OURS:
        parity(
            component="Muon", quantity=f"orthogonal momentum {shape[0]} x {shape[1]}", levels=f"v1-{level}",
            actual=orthogonal(level, matrix), expected=orthogonal("v1", matrix), tolerance=1e-14,
        )  # fmt: skip


def test_orthogonalization_agrees_with_torch_as_it_rounds(parity: ParityRecorder) -> None:
    """With torch's bfloat16, whose numbers have eight binary digits; the entries are about 0.2."""
    matrix = array(1, 24, 40, dtype=np.float64)
    for level in OURS:
        parity(
            component="Muon", quantity="orthogonal momentum, against bfloat16", levels=f"v1-{level}",
            actual=orthogonal(level, matrix), expected=orthogonal("v1", matrix), tolerance=0.01,
        )  # fmt: skip


@pytest.mark.usefixtures("without_rounding")
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-14), (np.float32, 2e-6)])
def test_muon_agrees_with_torch_after_25_steps(dtype: Any, tolerance: float, parity: ParityRecorder) -> None:
    made = {level: make(level, dtype) for level in LEVELS}
    after = {level: run(level, optimizer, start) for level, (start, optimizer) in made.items()}
    assert all(values.dtype == dtype for values in after.values())
    for a, b in (("v1", "v2"), ("v1", "v3"), ("v2", "v3")):
        parity(
            component="Muon", quantity=f"parameters after {STEPS} steps", levels=f"{a}-{b}",
            actual=after[b], expected=after[a], tolerance=tolerance,
        )  # fmt: skip


def test_matrices_of_one_shape_are_made_orthogonal_together_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for stack in (v2._STACK, 1):
        monkeypatch.setattr(v2, "_STACK", stack)
        start, optimizer = make("v2")
        results.append(run("v2", optimizer, start))
    np.testing.assert_allclose(*results, atol=1e-14)


@pytest.mark.parametrize("level", OURS)
def test_a_restored_optimizer_continues_bit_for_bit(level: str) -> None:
    check_resumed(level, lambda: make(level, np.float32))


def test_both_levels_have_the_same_names_for_the_same_state() -> None:
    two, three = (make(level)[1].state_dict() for level in OURS)
    assert {name: tuple(value.shape) for name, value in two.items()} == {k: v.shape for k, v in three.items()}
    assert {f"momentum.{name}" for name in "cdef"} | {"first_moment.a", "second_moment.b"} <= set(two)


@pytest.mark.parametrize("level", OURS)
def test_a_parameter_without_gradient_stays_as_it_is(level: str) -> None:
    made, optimizer = make(level)
    assert unmoved(level, optimizer, made, frozen=2) == [False, False, True, False, False, False]


@pytest.mark.parametrize("level", OURS)
def test_the_state_of_adamw_is_refused(level: str) -> None:
    _, optimizer = make(level)
    state = {name: value for name, value in optimizer.state_dict().items() if not name.startswith("momentum")}
    with pytest.raises(UserError, match="another shape"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_muon_has_the_matrices_between_hidden_states(family: str) -> None:
    """All of a block's, none that reads or writes tokens or positions."""
    hidden = {}
    for level in OURS:
        model, muon = (
            Level(level, family, tie_word_embeddings=False).model,
            level_module(level, "pretrain.components.muon"),
        )
        optimizer = muon.make_optimizer(model, PretrainSettings(optim="muon", weight_decay=0.1))
        all_groups = [*optimizer.groups, *optimizer.hidden]
        assert sorted(name for group in all_groups for name in group["names"]) == sorted(
            name for name, _ in model.named_parameters()
        )
        assert [group["weight_decay"] for group in all_groups] == [0.1, 0.0, 0.1]
        hidden[level] = set(all_groups[-1]["names"])
        assert not isinstance(muon.make_optimizer(model, PretrainSettings()), muon.Muon)
    assert hidden["v2"] == hidden["v3"]
    assert len(hidden["v2"]) == 2 * (7 if family == "llama" else 4)
    assert all("attn" in name or "mlp" in name for name in hidden["v2"])
