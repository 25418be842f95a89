"""Level 3: what only its training has."""

import tracemalloc

import numpy as np
import pytest

import v3_numpy_deep.pretrain.components.optimizers as optimizers
from v3_numpy_deep.autograd import Parameter


def adamw(shape: tuple[int, ...]) -> tuple[optimizers.AdamW, Parameter]:
    parameter = Parameter(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    parameter.grad = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    group = {"names": ["w"], "parameters": [parameter], "weight_decay": 0.1}
    return optimizers.AdamW([group], 1e-2), parameter


@pytest.mark.parametrize("piece", [1, 7, 1000, 10**9])
def test_the_size_of_the_pieces_changes_no_bit(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, expected = adamw((123, 17))
    for _ in range(3):
        optimizer.step()
    monkeypatch.setattr(optimizers, "_PIECE", piece)
    optimizer, actual = adamw((123, 17))
    for _ in range(3):
        optimizer.step()
    np.testing.assert_array_equal(actual.data, expected.data)


def test_the_update_works_in_place_without_arrays_of_the_models_size() -> None:
    optimizer, parameter = adamw((1000, 1000))
    data = parameter.data
    optimizer.step()
    tracemalloc.start()
    optimizer.step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert parameter.data is data
    assert peak < 3 * 4 * optimizers._PIECE, "more than the scratch of a piece was allocated"
