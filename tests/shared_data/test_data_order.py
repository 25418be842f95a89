"""The order of examples: each once an epoch, shuffled anew in every epoch, continued from two numbers."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_data.errors import UserError
from shared_data.training.data_order import DataOrder


def test_five_examples_in_batches_of_two() -> None:
    order = DataOrder(5, seed=0, shuffle=False)
    assert [order.take(2) for _ in range(4)] == [[0, 1], [2, 3], [4, 0], [1, 2]]
    assert order.state_dict() == {"epoch": 1, "position": 3, "seed": 0, "shuffle": False, "size": 5}


def test_rows_of_several_examples_are_taken_whole() -> None:
    order = DataOrder(4, seed=0, shuffle=False, arrange=lambda rows: [rows[:3].tolist(), rows[3:].tolist()])
    assert order.take(3) == [[0, 1, 2], [3], [0, 1, 2]]


@settings(deadline=None, derandomize=True)
@given(size=st.integers(1, 40), batch=st.integers(1, 50), taken=st.integers(0, 5))
def test_each_example_comes_once_an_epoch_and_a_resumed_order_goes_on(size, batch, taken):
    whole, resumed = DataOrder(size, seed=3), DataOrder(size, seed=3)
    seen = [int(row) for _ in range(taken) for row in whole.take(batch)]
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for _ in range(3):
        following = whole.take(batch)
        assert following == resumed.take(batch)
        seen += map(int, following)
    for epoch in range(len(seen) // size):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [DataOrder(50, seed=seed).take(100) for seed in (0, 1)]
    assert not np.array_equal(orders[0][:50], orders[0][50:])
    assert not np.array_equal(orders[0], orders[1])


@pytest.mark.parametrize(("key", "other"), [("size", (6, 0)), ("seed", (5, 1)), ("shuffle", (5, 0, False))])
def test_the_state_of_other_data_is_refused(key: str, other: tuple) -> None:
    with pytest.raises(UserError, match=f"data order has {key}"):
        DataOrder(*other).load_state_dict(DataOrder(5, 0).state_dict())
