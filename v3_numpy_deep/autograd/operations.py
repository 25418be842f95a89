"""The primitive operations: each is a NumPy call and, on the same screen, its derivative.

Throughout, `g` is the gradient of the result, d loss / d result. An operation returns `record(result, parents,
derivative)`, and the derivative answers `g` with one gradient a parent: the product of `g` with the Jacobian from the left
(Baydin et al. 2018, "Automatic Differentiation in Machine Learning: a Survey", section 3.2). Broadcasting is undone by
the engine, so a derivative may return a gradient of the broadcast shape.

Everything a network needs can be composed from these; `fused/` holds the compositions that are worth a derivative of their
own. Levels 1 and 2 use torch's operations.

    uv run python -c "from v3_numpy_deep.autograd import operations as ops; print(ops.softmax(ops.Tensor([1.0, 2.0])))"
"""

import builtins
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from v3_numpy_deep.autograd.tensor import Array, Part, Tensor, record


def as_tensor(value: Any, like: Any = None) -> Tensor:
    """`value` as a tensor; numbers and arrays take the type of `like`.

    Without this, a NumPy 2 float64 scalar (`np.sqrt(2)`) would quietly turn a float32 network into a float64 one.
    """
    if isinstance(value, Tensor):
        return value
    dtype = like.dtype if isinstance(like, Tensor) else None
    return Tensor(np.asarray(value, dtype=dtype) if dtype is not None else value)


def _pair(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    return as_tensor(a, like=b), as_tensor(b, like=a)


# --- arithmetic -----------------------------------------------------------------------------------------------------


def add(a: Any, b: Any) -> Tensor:
    """a + b;  ∂a = g,  ∂b = g"""
    a, b = _pair(a, b)
    return record(a.data + b.data, (a, b), lambda g: (g, g))


def subtract(a: Any, b: Any) -> Tensor:
    """a − b;  ∂a = g,  ∂b = −g"""
    a, b = _pair(a, b)
    return record(a.data - b.data, (a, b), lambda g: (g, -g))


def multiply(a: Any, b: Any) -> Tensor:
    """a · b;  ∂a = g b,  ∂b = g a"""
    a, b = _pair(a, b)
    x, y = a.data, b.data
    return record(x * y, (a, b), lambda g: (g * y, g * x))


def divide(a: Any, b: Any) -> Tensor:
    """a / b;  ∂a = g / b,  ∂b = −g a / b²"""
    a, b = _pair(a, b)
    x, y = a.data, b.data
    return record(x / y, (a, b), lambda g: (g / y, -g * x / (y * y)))


def negative(x: Tensor) -> Tensor:
    """−x;  ∂x = −g"""
    return record(-x.data, (x,), lambda g: (-g,))


def power(x: Tensor, exponent: float | int) -> Tensor:
    """xᵖ for a number p;  ∂x = g p xᵖ⁻¹"""
    p, v = float(exponent), x.data
    if p == 2.0:  # np.power is 50 times slower than a product
        return record(v * v, (x,), lambda g: (g * (2.0 * v),))
    return record(v**p, (x,), lambda g: (g * (p * v ** (p - 1.0)),))


def matmul(a: Any, b: Any) -> Tensor:
    """A B over the last two axes, the axes before them broadcast;  ∂A = g Bᵀ,  ∂B = Aᵀ g"""
    a, b = _pair(a, b)
    x, y = a.data, b.data
    assert x.ndim >= 2, f"matmul of {x.shape}: vectors are not accepted, add an axis"
    assert y.ndim >= 2, f"matmul by {y.shape}: vectors are not accepted, add an axis"
    return record(x @ y, (a, b), lambda g: (g @ y.swapaxes(-1, -2), x.swapaxes(-1, -2) @ g))


# --- functions of one number ----------------------------------------------------------------------------------------


def exp(x: Tensor) -> Tensor:
    """eˣ;  ∂x = g eˣ"""
    y = np.exp(x.data)
    return record(y, (x,), lambda g: (g * y,))


def log(x: Tensor) -> Tensor:
    """ln x;  ∂x = g / x"""
    v = x.data
    return record(np.log(v), (x,), lambda g: (g / v,))


def sqrt(x: Tensor) -> Tensor:
    """√x;  ∂x = g / (2 √x)"""
    y = np.sqrt(x.data)
    return record(y, (x,), lambda g: (g / (2.0 * y),))


def tanh(x: Tensor) -> Tensor:
    """tanh x;  ∂x = g (1 − tanh² x)"""
    y = np.tanh(x.data)
    return record(y, (x,), lambda g: (g * (1.0 - y * y),))


def sigmoid(x: Tensor) -> Tensor:
    """σ(x) = 1 / (1 + e⁻ˣ) = (1 + tanh(x/2)) / 2, which cannot overflow;  ∂x = g σ (1 − σ)"""
    y = 0.5 + 0.5 * np.tanh(0.5 * x.data)
    return record(y, (x,), lambda g: (g * (y * (1.0 - y)),))


def log_sigmoid(x: Tensor) -> Tensor:
    """ln σ(x) = −ln(1 + e⁻ˣ);  ∂x = g σ(−x)"""
    v = x.data
    return record(-np.logaddexp(v.dtype.type(0), -v), (x,), lambda g: (g * (0.5 - 0.5 * np.tanh(0.5 * v)),))


def erf(x: Tensor) -> Tensor:
    """The error function 2/√π ∫₀ˣ e^(−t²) dt;  ∂x = g 2/√π e^(−x²)"""
    v = x.data
    return record(error_function(v), (x,), lambda g: (g * (2.0 / math.sqrt(math.pi) * np.exp(-v * v)),))


def absolute(x: Tensor) -> Tensor:
    """|x|;  ∂x = g sign(x), and 0 at 0"""
    v = x.data
    return record(np.abs(v), (x,), lambda g: (g * np.sign(v),))


# --- choices --------------------------------------------------------------------------------------------------------


def where(condition: Array, a: Any, b: Any) -> Tensor:
    """a where the condition holds, else b;  each gets g where it was chosen"""
    a, b = _pair(a, b)
    return record(
        np.where(condition, a.data, b.data),
        (a, b),
        lambda g: (np.where(condition, g, g.dtype.type(0)), np.where(condition, g.dtype.type(0), g)),
    )


def maximum(a: Any, b: Any) -> Tensor:
    """The larger of a and b;  g goes to the larger, to a where they are equal"""
    a, b = _pair(a, b)
    return where(a.data >= b.data, a, b)


def minimum(a: Any, b: Any) -> Tensor:
    """The smaller of a and b;  g goes to the smaller, to a where they are equal"""
    a, b = _pair(a, b)
    return where(a.data <= b.data, a, b)


def clip(x: Tensor, low: float, high: float) -> Tensor:
    """x moved into [low, high];  ∂x = g inside, 0 outside"""
    v = x.data
    inside = (v >= low) & (v <= high)
    return record(np.clip(v, low, high), (x,), lambda g: (g * inside,))


# --- reductions -----------------------------------------------------------------------------------------------------


def sum(x: Tensor, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
    """Σ x over the axes (all of them for None);  ∂x = g, repeated over these axes"""
    shape = x.shape
    return record(
        x.data.sum(axis=axis, keepdims=keepdims),
        (x,),
        lambda g: (np.broadcast_to(_with_axes(g, shape, axis), shape),),
    )


def mean(x: Tensor, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
    """Σ x / n;  ∂x = g / n, repeated"""
    total = sum(x, axis, keepdims)
    return total * (total.size / builtins.max(1, x.size))  # of no rows, no mean


def max(x: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The largest x along the axis;  g goes to it, in equal parts where several are largest"""
    v = x.data
    y = v.max(axis=axis, keepdims=keepdims)
    largest = v == _with_axes(y, v.shape, axis)
    share = largest / largest.sum(axis=axis, keepdims=True, dtype=v.dtype)
    return record(y, (x,), lambda g: (_with_axes(g, v.shape, axis) * share,))


def _with_axes(y: Any, shape: tuple[int, ...], axis: int | tuple[int, ...] | None) -> Array:
    """Put the reduced axes back, with size 1."""
    axes = range(len(shape)) if axis is None else {a % len(shape) for a in np.atleast_1d(axis).tolist()}
    return np.asarray(y).reshape([1 if i in axes else size for i, size in enumerate(shape)])


def log_softmax(x: Tensor) -> Tensor:
    """ln softmax over the last axis. A constant may be subtracted from all logits, so the largest is, as a constant."""
    shifted = x - x.data.max(axis=-1, keepdims=True)
    return shifted - log(exp(shifted).sum(axis=-1, keepdims=True))


def softmax(x: Tensor) -> Tensor:
    """exp(x) / Σ exp(x) over the last axis"""
    shifted = exp(x - x.data.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


# --- shape ----------------------------------------------------------------------------------------------------------
# Results of reshape, transpose and basic indexing are views: they share the memory of x.


def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The same numbers in another shape;  ∂x = g in the shape of x"""
    old = x.shape
    return record(x.data.reshape(tuple(shape)), (x,), lambda g: (g.reshape(old),))


def transpose(x: Tensor, axes: Sequence[int] = ()) -> Tensor:
    """Axes in another order (reversed by default);  ∂x = g with the axes put back"""
    order = tuple(axes) or tuple(reversed(range(x.ndim)))
    back = np.argsort([axis % x.ndim for axis in order])
    return record(x.data.transpose(order), (x,), lambda g: (g.transpose(back),))


def getitem(x: Tensor, index: Any) -> Tensor:
    """x[index];  ∂x is 0 except at the index, where it is g; an entry that was read twice gets both"""
    if _is_basic(index):
        return record(x.data[index], (x,), lambda g: (Part(index, g),))
    shape = x.shape

    def derivative(g: Array) -> tuple[Array]:
        gradient = np.zeros(shape, g.dtype)
        if isinstance(index, np.ndarray) and index.dtype == bool:
            gradient[index] = g  # a mask reads no entry twice
        else:
            np.add.at(gradient, index, g)
        return (gradient,)

    return record(x.data[index], (x,), derivative)


def scatter(x: Tensor, places: Array) -> Tensor:
    """0 except at the places that a mask marks, which receive the rows of x in their order;  ∂x = g at these places"""
    y = np.zeros((*places.shape, *x.shape[1:]), x.dtype)
    y[places] = x.data
    return record(y, (x,), lambda g: (g[places],))


def _is_basic(index: Any) -> bool:
    """Slices and integers select each entry at most once; arrays of integers may repeat entries."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in parts)


def split(x: Tensor, sizes: Sequence[int], axis: int = -1) -> list[Tensor]:
    """Consecutive pieces of x along an axis, as views"""
    ends = np.cumsum(sizes).tolist()
    before = (slice(None),) * (axis % x.ndim)
    return [getitem(x, (*before, slice(end - size, end))) for size, end in zip(sizes, ends, strict=True)]


def concatenate(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors joined along an axis;  each gets its part of g"""
    ends = np.cumsum([tensor.shape[axis] for tensor in tensors])
    return record(
        np.concatenate([tensor.data for tensor in tensors], axis=axis),
        tuple(tensors),
        lambda g: np.split(g, ends[:-1], axis=axis),
    )


# --- the error function, which NumPy does not have ------------------------------------------------------------------


def error_function(x: Array) -> Array:
    """erf(x) to the precision of its type.

    erf is odd and, beyond |x| = 6, equal to ±1 in float64. On [0, 6] it is a Chebyshev series, fitted at import to the
    scalar `math.erf` and summed by Clenshaw's recurrence (Clenshaw 1955): b_k = c_k + 2 u b_(k+1) − b_(k+2).
    """
    u = np.minimum(np.abs(x), x.dtype.type(6.0)) / 3.0 - 1.0  # [0, 6] -> [-1, 1]
    later, last = np.zeros_like(u), np.zeros_like(u)
    for coefficient in _ERF_COEFFICIENTS[:0:-1]:
        later, last = coefficient + 2.0 * u * later - last, later
    return np.sign(x) * (_ERF_COEFFICIENTS[0] + u * later - last)


_ERF_COEFFICIENTS: list[float] = np.polynomial.Chebyshev.interpolate(
    lambda t: np.array([math.erf(value) for value in t]), deg=56, domain=[0, 6]
).coef.tolist()
