"""Every operation: the derivative is right (gradcheck in float64), float32 stays float32, broadcasting is undone."""

import gc
import math
import weakref

import numpy as np
import pytest

from tests.parity.arrays import array, integers
from v3_numpy_deep.autograd import Tensor, fused, record
from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.autograd.fused.attention import plan_tiles
from v3_numpy_deep.autograd.gradcheck import gradcheck
from v3_numpy_deep.models.blocks import (
    attention,
    cross_entropy,
    embeddings,
    feed_forward,
    normalization,
    rope,
)

POSITIVE = np.abs(array(9, 3, 4)) + 0.5
APART = np.linspace(-2.0, 2.0, 12).reshape(3, 4) + 0.01  # no two entries near each other, none near 0 or 1
A, B = array(1, 3, 4), array(2, 3, 4)
IDS = integers(3, 5, 2, 6)  # some of 5 rows are read several times
TARGETS = np.array([1, -100, 4, 0, 4])
MASK = attention.document_mask(np.array([[0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 0, 0]]), np.float64)
TILES = plan_tiles(MASK, 6, 6)
COS, SIN = rope.rotary_tables(np.array([1.0, 0.1]), np.array([[0, 1, 2], [5, 0, 1]]), np.float64)

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
    "concatenate": (lambda a, b: ops.concatenate([a, b, a], axis=-1) ** 2, [A, B]),
}

# Each fused operation with its composition from primitives.
FUSED = {
    "linear": (
        fused.linear,
        lambda x, w, b: x @ ops.transpose(w) + b,
        [array(1, 2, 3, 4), array(2, 5, 4), array(3, 5)],
    ),
    "linear without bias": (
        fused.linear,
        lambda x, w: x @ ops.transpose(w),
        [array(1, 3, 4), array(2, 5, 4)],
    ),
    "conv1d": (fused.conv1d, lambda x, w, b: x @ w + b, [array(1, 2, 3, 4), array(2, 4, 5), array(3, 5)]),
    "embedding": (
        lambda w: fused.embedding(w, IDS),
        lambda w: embeddings.plain_embed(w, IDS),
        [array(1, 5, 3)],
    ),
    "rms_norm": (
        lambda x, w: fused.rms_norm(x, w, 1e-5),
        lambda x, w: normalization.plain_rms_norm(x, w, 1e-5),
        [array(1, 2, 3, 8), array(2, 8)],
    ),
    "layer_norm": (
        lambda x, w, b: fused.layer_norm(x, w, b, 1e-5),
        lambda x, w, b: normalization.plain_layer_norm(x, w, b, 1e-5),
        [array(1, 2, 3, 8), array(2, 8), array(3, 8)],
    ),
    "gelu_new": (fused.gelu_new, feed_forward.plain_gelu_new, [array(1, 3, 4, scale=2.0)]),
    "swiglu": (fused.swiglu, feed_forward.plain_swiglu, [array(1, 2, 3, 8, scale=2.0)]),
    "swiglu of several blocks": (fused.swiglu, feed_forward.plain_swiglu, [array(1, 150, 1024, scale=2.0)]),
    "gelu_new of several blocks": (
        fused.gelu_new,
        feed_forward.plain_gelu_new,
        [array(1, 150, 1024, scale=2.0)],
    ),
    "rotary": (
        lambda x: fused.rotary(x, COS, SIN),
        lambda x: rope.plain_apply_rotary(x, COS, SIN),
        [array(1, 2, 3, 3, 4)],
    ),
    "cross_entropy": (
        lambda z: fused.cross_entropy(z, TARGETS),
        lambda z: cross_entropy.plain_cross_entropy(z, TARGETS),
        [array(1, 5, 7, scale=3.0)],
    ),
    "linear_cross_entropy": (
        lambda h, w: fused.linear_cross_entropy(h, w, TARGETS),
        lambda h, w: cross_entropy.plain_cross_entropy(h @ ops.transpose(w), TARGETS),
        [array(1, 5, 4), array(2, 7, 4)],
    ),
    "attention": (
        lambda q, k, v: fused.attention(q, k, v, TILES),
        lambda q, k, v: attention.plain_causal_attention(q, k, v, MASK),
        [array(1, 2, 4, 6, 4), array(2, 2, 2, 6, 4), array(3, 2, 2, 6, 4)],
    ),
    "attention over several tiles": (
        attention.causal_attention,
        attention.plain_causal_attention,
        [array(1, 1, 2, 150, 4), array(2, 1, 1, 150, 4), array(3, 1, 1, 150, 4)],
    ),
    "attention after a cache": (
        attention.causal_attention,
        attention.plain_causal_attention,
        [array(1, 2, 2, 3, 4), array(2, 2, 2, 90, 4), array(3, 2, 2, 90, 4)],
    ),
}
EVERY = OPERATIONS | {name: (operation, inputs) for name, (operation, _, inputs) in FUSED.items()}


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
def test_a_fused_operation_equals_its_composition(name):
    operation, composition, inputs = FUSED[name]
    results = []
    for function in (operation, composition):
        tensors = [Tensor(x, requires_grad=True) for x in inputs]
        output = function(*tensors)
        output.backward(np.asarray(array(99, *output.shape)))
        results.append([output.data, *(tensor.grad for tensor in tensors)])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)


def test_gradcheck_finds_a_wrong_derivative():
    one_entry = 2 + 1e-3 * (np.arange(12) == 7).reshape(3, 4)
    assert gradcheck(lambda x: record(np.sin(x.data), (x,), lambda g: (g * np.sin(x.data),)), A) > 0.01
    assert gradcheck(lambda x: record(x.data * 2, (x,), lambda g: (g * one_entry,)), A) > 1e-5


def test_the_error_function_has_the_precision_of_its_type():
    x = np.linspace(-8, 8, 2001)
    truth = np.array([math.erf(value) for value in x])
    assert np.abs(ops.error_function(x) - truth).max() < 1e-13
    assert np.abs(ops.error_function(x.astype(np.float32)) - truth).max() < 5e-7


def test_exercise_no_gradient_flows_along_a_normalised_vector():
    x, weight = Tensor(array(1, 5, 8), requires_grad=True), Tensor(array(2, 8))
    fused.rms_norm(x, weight, 0.0).backward(array(3, 5, 8))
    np.testing.assert_allclose((x.grad * x.data).sum(axis=1), 0.0, atol=1e-14)
    assert np.abs(x.grad).max() > 0.1


def test_attention_never_multiplies_hidden_keys():
    q, k, v = (Tensor(array(seed, 1, 1, 6, 4)) for seed in (1, 2, 3))
    documents = np.array([[0, 0, 0, 1, 1, 1]])
    tiles = plan_tiles(attention.document_mask(documents, np.float64), 6, 6)
    k.data[:, :, :3] = np.nan  # 0 · NaN would be NaN
    v.data[:, :, :3] = np.nan
    output = fused.attention(q, k, v, tiles).data
    assert np.isnan(output[:, :, :3]).all()
    assert np.isfinite(output[:, :, 3:]).all()


def test_a_query_that_sees_no_key_gets_zeros_and_no_gradient():
    q, k, v = (Tensor(array(seed, 1, 1, 3, 4), requires_grad=True) for seed in (1, 2, 3))
    mask = attention.padding_mask(np.array([[0, 1, 1]]), 3, np.float64)
    output = attention.causal_attention(q, k, v, mask)
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
