"""Every operation: the derivative is right (gradcheck in float64), float32 stays float32, broadcasting is undone, fused equals plain."""

import functools
import gc
import inspect
import math
import tracemalloc
import weakref

import numpy as np
import pytest

from shared_data.attention.patterns import AttentionPattern
from shared_data.errors import UserError
from tests.parity.arrays import array, integers
from v3_numpy_deep.autograd import Tensor, fused, record
from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.autograd.gradcheck import gradcheck
from v3_numpy_deep.autograd.kernels import kernel
from v3_numpy_deep.models.blocks.attention import causal_attention
from v3_numpy_deep.models.blocks.attention_mask import AttentionMask
from v3_numpy_deep.models.blocks.cross_entropy import cross_entropy, linear_cross_entropy
from v3_numpy_deep.models.blocks.feed_forward import gelu_new, swiglu
from v3_numpy_deep.models.blocks.linear import Linear, linear, merged_linear
from v3_numpy_deep.models.blocks.mixture_of_experts import expert_mixture
from v3_numpy_deep.models.blocks.normalization import layer_norm, rms_norm
from v3_numpy_deep.models.blocks.rope import apply_rotary, rotary_tables
from v3_numpy_deep.models.blocks.selected_attention import selected_attention
from v3_numpy_deep.models.blocks.sparse_indexer import attention_kl, select_keys
from v3_numpy_deep.models.log_probs import linear_log_probs
from v3_numpy_deep.models.packing import Packing

POSITIVE = np.abs(array(9, 3, 4)) + 0.5
APART = np.linspace(-2.0, 2.0, 12).reshape(3, 4) + 0.01  # no two entries near each other, none near 0 or 1
A, B = array(1, 3, 4), array(2, 3, 4)
IDS = integers(3, 5, 2, 6)  # some of 5 rows are read several times
TARGETS = np.array([1, -100, 4, 0, 4])
COS, SIN = rotary_tables(np.array([1.0, 0.1]), np.array([[0, 1, 2], [5, 0, 1]]), np.float64)
T = 150  # three tiles of queries
PLACES = np.tile(np.arange(T), (2, 1))
# Texts of 70 with two branches.
PACKED = AttentionMask(T, T, packing=Packing(PLACES // 70, PLACES % 70 // 25))
PADDED = AttentionMask(T, T, attention_mask=np.arange(T) >= np.array([[0], [20]]))
KEPT = PLACES % 7 > 4
SELECTED = select_keys(array(7, 2, T, T), PACKED.allowed(), 7)  # the first queries of a text see fewer
INDEX = [array(1, 2, T, 3, 4), array(2, 2, T, 4), array(3, 2, T, 3)]
EXPERTS = np.arange(9)[:, None] % 3 + np.array([0, 2])  # of 6, the last of which nobody chose
PACKED_TEXTS = AttentionMask(T, T, packing=Packing(PLACES // 70))
WINDOW, STRIDES = AttentionPattern("sliding_attention", 20, 2), AttentionPattern("strided_attention", 12, 2)

OPERATIONS = {
    "add": (ops.add, [A, B]),
    "add broadcast": (ops.add, [A, array(3, 4)]),
    "subtract": (ops.subtract, [A, B]),
    "multiply": (ops.multiply, [A, B]),
    "multiply broadcast": (ops.multiply, [A, array(3, 3, 1)]),
    "multiply both broadcast": (ops.multiply, [array(4, 3, 1), array(3, 1, 4)]),
    "multiply by 0-d": (ops.multiply, [A, np.array(0.7)]),
    "divide": (ops.divide, [A, POSITIVE]),
    "divide a number": (lambda x: 2.0 / x, [POSITIVE]),
    "negative": (ops.negative, [A]),
    "square": (lambda x: x**2, [A]),
    "power": (lambda x: x**-1.5, [POSITIVE]),
    "matmul": (ops.matmul, [array(1, 3, 4), array(2, 4, 5)]),
    "matmul batched": (ops.matmul, [array(1, 2, 3, 4), array(2, 2, 4, 5)]),
    "matmul broadcast": (ops.matmul, [array(1, 2, 1, 3, 4), array(2, 3, 4, 5)]),
    "exp": (ops.exp, [A]),
    "log": (ops.log, [POSITIVE]),
    "sqrt": (ops.sqrt, [POSITIVE]),
    "tanh": (ops.tanh, [A]),
    "sigmoid": (ops.sigmoid, [A]),
    "log_sigmoid": (ops.log_sigmoid, [A * 3]),
    "erf": (ops.erf, [A]),
    "absolute": (ops.absolute, [APART]),
    "where": (lambda a, b: ops.where(A > 0, a, b), [A, B]),
    "maximum": (ops.maximum, [APART, -0.3 * APART + 0.1]),
    "minimum": (ops.minimum, [APART, array(8, 4)]),
    "clip": (lambda x: ops.clip(x, -1.0, 1.0), [APART]),
    "sum": (ops.sum, [A]),
    "sum axis": (lambda x: x.sum(axis=-1), [A]),
    "sum axes": (lambda x: x.sum(axis=(0, 2), keepdims=True), [array(1, 2, 3, 4)]),
    "mean": (lambda x: x.mean(axis=0), [A]),
    "max": (lambda x: ops.max(x, axis=1), [APART]),
    "max of all": (ops.max, [APART]),
    "log_softmax": (ops.log_softmax, [A]),
    "softmax": (ops.softmax, [A]),
    "reshape": (lambda x: x.reshape(2, 6), [A]),
    "transpose": (lambda x: x.transpose(2, 0, 1), [array(1, 2, 3, 4)]),
    "transpose reversed": (ops.transpose, [A]),
    "getitem slice": (lambda x: x[1:, ::2], [A]),
    "getitem overlapping slices": (lambda x: x[:2] * x[1:] + x[:1], [A]),
    "getitem repeated ids": (lambda x: x[IDS], [array(1, 5, 2)]),
    "split": (lambda x: ops.multiply(*ops.split(x, [2, 2])), [A]),
    "split first axis": (lambda x: ops.split(x, [1, 2], axis=0)[1] ** 2, [A]),
    "scatter": (lambda x: ops.scatter(x, IDS[0] > 1), [array(1, int((IDS[0] > 1).sum()), 2)]),
    "concatenate": (lambda a, b: ops.concatenate([a, b, a], axis=-1) ** 2, [A, B]),
}


def heads(H: int, K: int, new: int = T) -> list[np.ndarray]:
    """Queries, of the last positions only, keys and values."""
    return [array(1, 2, H, new, 4), array(2, 2, K, T, 4), array(3, 2, K, T, 4)]


def kept_attention(choose, q, k, v):
    """Attention of the queries that are wanted."""
    return choose(causal_attention)(q, k, v, PACKED.only(KEPT)).transpose(0, 2, 1, 3)[KEPT]


def kept_selection(choose, q, k, v):
    """Attention to selected keys of the queries that are wanted."""
    output = choose(selected_attention)(q, k, v, SELECTED, PACKED.only(KEPT))
    return output.transpose(0, 2, 1, 3)[KEPT]


def indexer_learns(mask, selected=None):
    """The loss of an indexer beside an attention of two heads."""

    def loss(choose, queries, keys, weights):
        q, k = (Tensor(x.astype(queries.dtype)) for x in heads(2, 1)[:2])
        return choose(attention_kl)(queries, keys, weights, q, k, selected, mask)

    return loss


def merged(choose, x, *weights):
    """Two layers on one input."""
    layers = [Linear(4, 5), Linear(4, 3)]
    for layer, (weight, bias) in zip(layers, (weights[:2], weights[2:]), strict=True):
        layer.weight, layer.bias = weight, bias
    return choose(merged_linear)(x, layers)


# Each operation that has a fused version: `choose` makes of the plain function the one to compute.
FUSED = {
    "linear": (
        lambda choose, x, w, b: choose(linear)(x, w, b),
        [array(1, 2, 3, 4), array(2, 5, 4), array(3, 5)],
    ),
    "linear without bias": (lambda choose, x, w: choose(linear)(x, w), [array(1, 3, 4), array(2, 5, 4)]),
    "linear with [in, out]": (
        lambda choose, x, w: choose(linear)(x, ops.transpose(w)),
        [array(1, 3, 4), array(2, 4, 5)],
    ),
    "merged_linear": (
        merged,
        [array(1, 2, 3, 4), array(2, 5, 4), array(3, 5), array(4, 3, 4), array(5, 3)],
    ),
    "rms_norm": (
        lambda choose, x, w: choose(rms_norm)(x, w, 1e-5),
        [array(1, 2, 3, 8), array(2, 8)],
    ),
    "layer_norm": (
        lambda choose, x, w, b: choose(layer_norm)(x, w, b, 1e-5),
        [array(1, 2, 3, 8), array(2, 8), array(3, 8)],
    ),
    "gelu_new": (lambda choose, x: choose(gelu_new)(x), [array(1, 3, 4, scale=2.0)]),
    "gelu_new in blocks": (lambda choose, x: choose(gelu_new)(x), [array(1, 150, 1024, scale=2.0)]),
    "swiglu": (lambda choose, x: choose(swiglu)(x), [array(1, 2, 3, 8, scale=2.0)]),
    "swiglu in blocks": (lambda choose, x: choose(swiglu)(x), [array(1, 150, 1024, scale=2.0)]),
    "apply_rotary": (lambda choose, x: choose(apply_rotary)(x, COS, SIN), [array(1, 2, 3, 3, 4)]),
    "expert_mixture": (
        lambda choose, x, w, *matrices: choose(expert_mixture)(x, w, EXPERTS, *matrices),
        [array(1, 9, 4), array(2, 9, 2), array(3, 6, 6, 4), array(4, 6, 4, 3)],
    ),
    "expert_mixture in blocks": (
        lambda choose, x, w, *matrices: choose(expert_mixture)(x, w, np.zeros((150, 1), int), *matrices),
        [array(1, 150, 4), array(2, 150, 1), array(3, 2, 1024, 4), array(4, 2, 4, 512)],
    ),
    "cross_entropy": (
        lambda choose, z: choose(cross_entropy)(z, TARGETS),
        [array(1, 5, 7, scale=3.0)],
    ),
    "linear_cross_entropy": (
        lambda choose, h, w: choose(linear_cross_entropy)(h, w, TARGETS),
        [array(1, 5, 4), array(2, 7, 4)],
    ),
    "linear_cross_entropy in blocks": (
        lambda choose, h, w: choose(linear_cross_entropy)(h, w, integers(3, 1024, 300)),
        [array(1, 300, 4), array(2, 1024, 4)],
    ),
    "linear_log_probs": (
        lambda choose, h, w: choose(linear_log_probs)(h, w, np.array([1, 6, 6, 0, 4]), 0.7),
        [array(1, 5, 4), array(2, 7, 4)],
    ),
    "linear_log_probs in blocks": (
        lambda choose, h, w: choose(linear_log_probs)(h, w, integers(3, 1024, 300)),
        [array(1, 300, 4), array(2, 1024, 4)],
    ),
    "causal_attention, MHA": (lambda choose, q, k, v: choose(causal_attention)(q, k, v), heads(2, 2)),
    "causal_attention, GQA, packed": (
        lambda choose, q, k, v: choose(causal_attention)(q, k, v, PACKED),
        heads(4, 2),
    ),
    "causal_attention, MQA, padded": (  # a query that sees no key has no right answer
        lambda choose, q, k, v: choose(causal_attention)(q, k, v, PADDED)[:, :, 20:],
        heads(4, 1),
    ),
    "causal_attention after a cache": (
        lambda choose, q, k, v: choose(causal_attention)(q, k, v),
        heads(2, 2, new=3),
    ),
    "causal_attention of some queries": (kept_attention, heads(2, 1)),
    "causal_attention in a window": (
        lambda choose, q, k, v: choose(causal_attention)(q, k, v, PACKED_TEXTS.of(WINDOW)),
        heads(4, 2),
    ),
    "causal_attention in strides, sinks, soft cap": (
        lambda choose, q, k, v, sinks: choose(causal_attention)(
            q, k, v, AttentionMask(T, T).of(STRIDES), sinks=sinks, softcap=2.0
        ),
        [*heads(4, 2), array(5, 4)],
    ),
    "causal_attention in strides of some queries": (
        lambda choose, q, k, v: choose(causal_attention)(
            q, k, v, AttentionMask(T, T).of(STRIDES).only(KEPT)
        ).transpose(0, 2, 1, 3)[KEPT],
        heads(2, 1),
    ),
    "selected_attention": (
        lambda choose, q, k, v: choose(selected_attention)(q, k, v, SELECTED, PACKED),
        heads(4, 2),
    ),
    "selected_attention of some queries, one head of latents": (
        kept_selection,
        [*heads(4, 1)[:2], array(3, 2, 1, T, 3)],
    ),
    "attention_kl": (indexer_learns(PACKED), INDEX),
    "attention_kl, padded": (indexer_learns(PADDED), INDEX),
    "attention_kl of selected keys": (indexer_learns(PACKED, SELECTED), INDEX),
}
CHOICES = {choice: functools.partial(kernel, choice) for choice in ("plain", "fused")}
EVERY = OPERATIONS | {
    name: (functools.partial(operation, CHOICES["fused"]), inputs)
    for name, (operation, inputs) in FUSED.items()
}


@pytest.mark.parametrize("name", EVERY)
def test_the_derivative_agrees_with_finite_differences(name):
    operation, inputs = EVERY[name]
    assert gradcheck(operation, *inputs) < 1e-7


@pytest.mark.parametrize("name", EVERY)
def test_float32_in_float32_out(name):
    operation, inputs = EVERY[name]
    tensors = [Tensor(x.astype(np.float32), requires_grad=True) for x in inputs]
    output = operation(*tensors)
    assert output.dtype == np.float32
    output.backward(np.ones_like(output.data))
    assert {tensor.grad.dtype for tensor in tensors} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", EVERY)
def test_a_result_nobody_needs_is_freed_without_the_garbage_collector(name):
    operation, inputs = EVERY[name]
    gc.disable()
    try:
        output = operation(*(Tensor(x, requires_grad=True) for x in inputs))
        watched = weakref.ref(output)
        del output
        assert watched() is None  # a derivative that captured its own result would keep it
    finally:
        gc.enable()


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_operation_equals_the_plain_formula(name):
    operation, inputs = FUSED[name]
    results = []
    for choose in CHOICES.values():
        tensors = [Tensor(x, requires_grad=True) for x in inputs]
        output = operation(choose, *tensors)
        output.backward(np.asarray(array(99, *output.shape)))
        results.append([output.data, *(tensor.grad for tensor in tensors)])
    for plain, ours in zip(*results, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-11, atol=1e-12)


def test_every_fused_operation_is_compared_with_a_formula_of_the_same_signature():
    formulas = [value for value in globals().values() if getattr(value, "__name__", "") in fused.__all__]
    assert sorted(formula.__name__ for formula in formulas) == fused.__all__
    assert {name.split(",")[0].split(" ")[0] for name in FUSED} == set(fused.__all__)
    for formula in formulas:
        chosen = kernel("fused", formula)
        assert chosen is getattr(fused, formula.__name__)
        assert list(inspect.signature(chosen).parameters) == list(inspect.signature(formula).parameters)
    assert kernel("fused", ops.erf) is ops.erf  # there is no other
    with pytest.raises(UserError, match="choose one of plain, fused"):
        kernel("library", linear)


def test_gradcheck_finds_a_wrong_derivative():
    one_entry = 2 + 1e-3 * (np.arange(12) == 7).reshape(3, 4)
    assert gradcheck(lambda x: record(np.sin(x.data), (x,), lambda g: (g * np.sin(x.data),)), A) > 0.01
    assert gradcheck(lambda x: record(x.data * 2, (x,), lambda g: (g * one_entry,)), A) > 1e-5


def test_the_error_function_has_the_precision_of_its_type():
    x = np.linspace(-8, 8, 2001)
    truth = np.array([math.erf(value) for value in x])
    assert np.abs(ops.error_function(x) - truth).max() < 1e-13
    assert np.abs(ops.error_function(x.astype(np.float32)) - truth).max() < 5e-7


def test_exercise_no_gradient_flows_along_a_normalized_vector():
    x, weight = Tensor(array(1, 5, 8), requires_grad=True), Tensor(array(2, 8))
    fused.rms_norm(x, weight, 0.0).backward(array(3, 5, 8))
    np.testing.assert_allclose((x.grad * x.data).sum(axis=1), 0.0, atol=1e-14)
    assert np.abs(x.grad).max() > 0.1


def test_attention_never_multiplies_hidden_keys():
    q, k, v = (Tensor(array(seed, 1, 1, 6, 4)) for seed in (1, 2, 3))
    documents = np.array([[0, 0, 0, 1, 1, 1]])
    mask = AttentionMask(6, 6, packing=Packing(documents))
    k.data[:, :, :3] = np.nan  # 0 · NaN would be NaN
    v.data[:, :, :3] = np.nan
    output = fused.causal_attention(q, k, v, mask).data
    assert np.isnan(output[:, :, :3]).all()
    assert np.isfinite(output[:, :, 3:]).all()


@pytest.mark.parametrize("pattern", [AttentionPattern(), WINDOW, STRIDES], ids=["full", "window", "strides"])
def test_memory_of_attention_grows_with_the_length_and_not_with_its_square(pattern):
    """Forward and backward, planning included; NumPy tells tracemalloc of each array."""

    def peak(T):
        q, k, v = (
            Tensor(array(seed, 1, 1, T, 8).astype(np.float32), requires_grad=True) for seed in (1, 2, 3)
        )
        tracemalloc.start()
        fused.causal_attention(q, k, v, AttentionMask(T, T).of(pattern)).sum().backward()
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(256)  # edges that all lengths share
    short, long = peak(2048), peak(4096)
    assert long < 2.2 * short
    assert long < 0.15 * 4096**2 * 4


def test_a_query_that_sees_no_key_gets_zeros_and_no_gradient():
    q, k, v = (Tensor(array(seed, 1, 1, 3, 4), requires_grad=True) for seed in (1, 2, 3))
    mask = AttentionMask(3, 3, attention_mask=np.array([[0, 1, 1]]))
    output = fused.causal_attention(q, k, v, mask)
    assert (output.data[:, :, 0] == 0).all()
    output.sum().backward()
    assert (q.grad[:, :, 0] == 0).all()
    assert all(np.isfinite(tensor.grad).all() for tensor in (q, k, v))


def test_cross_entropy_without_any_target_is_zero():
    hidden, weight = Tensor(array(1, 2, 4), requires_grad=True), Tensor(array(2, 7, 4), requires_grad=True)
    loss = fused.linear_cross_entropy(hidden, weight, np.array([-100, -100]))
    loss.backward()
    assert loss.item() == 0
    assert (weight.grad == 0).all()


def test_cross_entropy_survives_huge_logits():
    logits = Tensor(np.array([[1e4, 0.0], [0.0, 1e4]], np.float32), requires_grad=True)
    loss = fused.cross_entropy(logits, np.array([0, 0]))
    loss.backward()
    assert loss.item() == pytest.approx(5e3)
    np.testing.assert_allclose(logits.grad, [[0, 0], [-0.5, 0.5]])
