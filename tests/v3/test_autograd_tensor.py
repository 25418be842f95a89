"""What the engine promises: sums over paths, one visit a tensor, memory freed, clear errors, types kept."""

import gc
import os
import subprocess
import sys
import textwrap
import threading
import weakref

import numpy as np
import pytest

from tests.parity.arrays import array
from v3_numpy_deep.autograd import Module, ModuleDict, ModuleList, Parameter, Tensor, no_grad, record
from v3_numpy_deep.autograd import operations as ops


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values), requires_grad=True)


def test_exercise_gradients_add_up_where_a_tensor_is_used_twice():
    x = leaf(3.0)
    y = x * x + x  # x is read three times: dy/dx = 2x + 1
    y.sum().backward()
    np.testing.assert_allclose(x.grad, [7.0])


def test_gradients_of_two_backward_passes_add_up():
    x = leaf(2.0)
    (x * 3.0).sum().backward()
    (x * 4.0).sum().backward()
    np.testing.assert_allclose(x.grad, [7.0])


def test_a_shared_gradient_array_is_not_shared_between_leaves():
    a, b = leaf(1.0), leaf(2.0)
    (a + b).sum().backward()
    a.grad *= 10.0  # gradient clipping does this
    np.testing.assert_allclose(b.grad, [1.0])


@pytest.mark.parametrize("total", [lambda a, b: (a + b) + a * 2.0, lambda a, b: a * 2.0 + (a + b)])
def test_an_intermediate_sum_does_not_write_into_an_array_another_path_still_needs(total):
    x = leaf(1.0, 2.0)
    a, b = x * 10.0, x * 100.0  # a + b sends one array to both, and then a gets a second gradient
    total(a, b).sum().backward()
    np.testing.assert_allclose(x.grad, [130.0, 130.0])


def test_dense_and_sliced_gradients_of_a_tensor_add_up():
    x = leaf(1.0, 2.0)
    a = x * 2.0
    (a + a[:1] + a[1:] * 3.0 + a).sum().backward()  # the slices are repeated over both entries
    np.testing.assert_allclose(x.grad, [2 * (2 + 2), 2 * (2 + 6)])


def test_backward_twice_names_the_remedy():
    x = leaf(2.0)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="run the forward pass again"):
        y.backward()


def test_a_second_backward_through_a_shared_history_changes_no_gradient():
    x = leaf(2.0)
    shared = x * x
    first, second = (shared * 2.0).sum(), (shared * 3.0).sum() + x.sum()
    first.backward()
    before = x.grad.copy()
    with pytest.raises(RuntimeError, match="second time"):
        second.backward()
    np.testing.assert_array_equal(x.grad, before)


def test_backward_needs_a_history_and_one_number():
    with pytest.raises(RuntimeError, match="without history"):
        Tensor([1.0]).backward()
    with pytest.raises(ValueError, match="sum to one number"):
        (leaf(1.0, 2.0) * 2.0).backward()


def test_no_grad_leaves_no_history_and_ends_with_its_block():
    x = leaf(1.0)
    with no_grad():
        assert not (x * 2.0).requires_grad
    assert (x * 2.0).requires_grad


def test_no_grad_of_one_thread_does_not_reach_another():
    x, seen = leaf(1.0), []
    with no_grad():
        thread = threading.Thread(target=lambda: seen.append((x * 2.0).requires_grad))
        thread.start()
        thread.join()
    assert seen == [True]


def test_detached_values_send_no_gradient_back():
    x = leaf(3.0)
    (x * x.detach()).sum().backward()
    np.testing.assert_allclose(x.grad, [3.0])


def test_a_deep_chain_needs_no_recursion():
    x = leaf(1.0)
    y = x
    for _ in range(10_000):
        y = y + 1.0
    y.sum().backward()
    np.testing.assert_allclose(x.grad, [1.0])
    unused = x
    for _ in range(10_000):
        unused = unused + 1.0
    del unused  # nor does giving up a history that was never walked


def test_residual_connections_do_not_multiply_the_work():
    x = leaf(1.0)
    y = x
    for _ in range(200):  # 2^200 paths
        y = y * 0.5 + y * 0.5
    y.sum().backward()
    np.testing.assert_allclose(x.grad, [1.0])


def test_intermediate_tensors_are_freed_during_backward_not_after():
    x, seen = leaf(1.0), []

    def derivative(g):
        seen.append(watched() is None)
        return (g,)

    first = record(x.data * 1.0, (x,), derivative)  # walked last
    y = first * 2.0
    watched = weakref.ref(y)
    loss = (y * 3.0).sum()
    del y
    gc.disable()
    try:
        loss.backward()
    finally:
        gc.enable()
    assert seen == [True]


def test_peak_memory_does_not_grow_over_steps_without_the_garbage_collector():
    # In a process of its own: the shape checker that wraps functions in tests makes reference cycles itself. With one
    # thread: of several, it is chance how much they hold at the same time.
    program = """
        import gc, tracemalloc
        import numpy as np
        from shared_data.model_files.config import ModelConfig
        from v3_numpy_deep.models.transformer import Transformer
        gc.collect(); gc.disable(); tracemalloc.start()
        for family in ("llama", "gpt2"):
            model = Transformer(ModelConfig(model_type=family, vocab_size=256, hidden_size=32, num_hidden_layers=2)).initialize(0)
            ids = np.arange(256).reshape(2, 128) % 256
            peaks = []
            for step in range(6):
                tracemalloc.reset_peak()
                model.zero_grad()
                model.loss(ids, ids).backward()
                peaks.append(tracemalloc.get_traced_memory()[1])
            print(max(peaks[1:]) / peaks[1])
    """
    command, environment = (
        [sys.executable, "-c", textwrap.dedent(program)],
        os.environ | {"OMP_NUM_THREADS": "1"},
    )
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    growth = [float(line) for line in result.stdout.split()]
    assert len(growth) == 2
    assert max(growth) < 1.01  # with one cycle a step it would be 5


def test_arrays_and_numbers_meet_tensors_on_either_side():
    x = Tensor([1.0, 2.0])
    for result in (np.ones(2, np.float32) * x, x * np.ones(2), 2 * x, x / np.float64(0.5), 1 - x, x - 1):
        assert isinstance(result, Tensor)
        assert result.dtype == np.float32


def test_python_numbers_are_float32_and_integers_stay_integers():
    assert Tensor([1.0, 2.0]).dtype == np.float32
    assert Tensor(np.array([1.0])).dtype == np.float64
    assert Tensor([1, 2]).dtype == np.int64


class Inner(Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = Parameter(np.ones((2, 2), np.float32))
        self.bias = None


class Outer(Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = ModuleList([Inner(), Inner()])
        self.heads = ModuleDict({"a": Inner()})
        self.head = Inner()
        self.head.weight = self.layers[0].weight


def test_parameters_have_dotted_names_and_a_tied_one_comes_once():
    module = Outer()
    assert [name for name, _ in module.named_parameters()] == [
        "layers.0.weight",
        "layers.1.weight",
        "heads.a.weight",
    ]
    assert "head.weight" in module.state_dict()


def test_a_state_dict_comes_back_and_keeps_the_ties():
    source, target = Outer(), Outer()
    source.layers[0].weight.data[...] = 5.0
    target.load_state_dict(source.state_dict())
    assert target.head.weight.data[0, 0] == 5.0
    assert target.head.weight is target.layers[0].weight
    source.layers[0].weight.data[...] = 6.0
    assert target.head.weight.data[0, 0] == 5.0  # copied, not shared


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("heads.a.weight"), "missing .'heads.a.weight'"),
        (lambda state: state.update(extra=np.ones(1)), "unknown .'extra'"),
        (lambda state: state.update({"layers.1.weight": np.ones((3, 2))}), "shape .3, 2."),
    ],
)
def test_weights_that_do_not_fit_change_nothing(change, message):
    module = Outer()
    state = {name: value + 1 for name, value in module.state_dict().items()}
    change(state)
    with pytest.raises(ValueError, match=message):
        module.load_state_dict(state)
    assert all((value == 1).all() for value in module.state_dict().values())


def test_train_and_eval_reach_every_module():
    module = Outer().eval()
    assert not any(child.training for child in module.modules())
    assert all(child.training for child in module.train().modules())


def test_an_in_place_change_between_forward_and_backward_is_seen_by_the_derivative():
    # Documented in tensor.md: derivatives hold the arrays themselves, so the optimizer must wait for backward.
    w, x = leaf(2.0), leaf(3.0)
    y = (w * x).sum()
    w.data *= 10.0
    y.backward()
    np.testing.assert_allclose(x.grad, [20.0])


def test_a_gradient_of_another_type_is_a_bug_that_is_caught():
    x = Tensor([1.0], requires_grad=True)
    y = record(x.data * 2, (x,), lambda g: (g.astype(np.float64),))
    with pytest.raises(AssertionError, match="float64 of a float32"):
        y.sum().backward()


def test_softmax_of_primitives_sums_to_one_and_does_not_overflow():
    logits = Tensor(array(1, 4, 7, scale=1e4), requires_grad=True)
    np.testing.assert_allclose(ops.softmax(logits).data.sum(-1), 1.0)
    np.testing.assert_allclose(np.exp(ops.log_softmax(logits).data), ops.softmax(logits).data, atol=1e-12)
