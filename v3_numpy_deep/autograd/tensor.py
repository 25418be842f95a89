"""A tensor with a history of how it was computed, and the walk back through that history: reverse-mode differentiation.

An operation computes an array, and leaves on its result the tensors it read (`_parents`) and a function from the
gradient of the result to the gradients of those parents (`_derivative`). `backward` visits every tensor once, children
before parents, and multiplies the chain rule out from the loss to the parameters (Linnainmaa 1970; Griewank & Walther,
"Evaluating Derivatives", 2008, chapter 3; the page beside this file is `tensor.md`).

Levels 1 and 2 use torch's autograd. This file is what it does, without the speed of C++.

    uv run python -c "from v3_numpy_deep.autograd import Tensor; x = Tensor([3.0], requires_grad=True); (x * x).sum().backward(); print(x.grad)"
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

Array = np.ndarray
Gradient = np.ndarray | np.generic  # NumPy turns arrays without axes into scalars
Derivative = Callable[[Any], Sequence[Any]]  # gradient of the result -> one gradient (or None) a parent


class _Mode(threading.local):
    """Whether operations are recorded, for each thread."""

    recording = True


_mode = _Mode()


class Tensor:
    """An array with a history.

    data           the values; floating point for everything that has a gradient
    grad           after `backward`: d loss / d data, an array of the same shape and type; leaves only
    requires_grad  whether `backward` should reach this tensor
    """

    __slots__ = ("__weakref__", "_derivative", "_parents", "data", "grad", "requires_grad")
    __array_ufunc__ = None  # `array * tensor` then calls our operator instead of making an array of tensors

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        if not isinstance(data, (np.ndarray, np.generic)):  # Python numbers and lists: float32, as in torch
            data = np.asarray(data)
            data = data.astype(np.float32) if data.dtype == np.float64 else data
        self.data: Array = np.asarray(data)
        self.grad: Array | None = None
        self.requires_grad = requires_grad
        self._parents: tuple[Tensor, ...] = ()
        self._derivative: Derivative | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"Tensor({self.data}{', requires_grad=True' if self.requires_grad else ''})"

    def item(self) -> float:
        """The one value as a Python number."""
        return self.data.item()

    def numpy(self) -> Array:
        """The values themselves: not a copy, so writing to them changes the tensor."""
        return self.data

    def detach(self) -> "Tensor":
        """The same values without the history: what is computed from it sends no gradient back."""
        return Tensor(self.data)

    def backward(self, gradient: Gradient | None = None) -> None:
        """Add d self / d leaf to `grad` of every leaf that requires it, and free the history on the way.

        `gradient` is d loss / d self; it may be left out where self is one number, the loss. Because the history is freed,
        a second call raises `RuntimeError`: run the forward pass again. Gradients of several backward passes add up
        until `grad` is set to None.
        """
        for leaf, found in self.gradients(gradient).items():
            # The first is copied: an operation may hand the same array to two parents.
            leaf.grad = np.array(found, order="C") if leaf.grad is None else leaf.grad + found

    def gradients(self, gradient: Gradient | None = None) -> "dict[Tensor, Any]":
        """The gradients of the leaves, which `backward` adds to their `grad`."""
        if not self.requires_grad:
            raise RuntimeError(
                "backward() of a tensor without history: nothing it was made from requires a gradient"
            )
        if gradient is None:
            if self.size != 1:
                raise ValueError(
                    f"backward() of shape {self.shape} needs a gradient; sum to one number, or pass one"
                )
            gradient = np.ones_like(self.data)
        leaves: dict[Tensor, Any] = {}
        walk = _topological_order(self)
        waiting = _Gradients()  # of tensors whose turn has not come
        waiting.add(self, gradient)
        while walk:
            tensor = walk.pop()  # nothing else here holds it: after its turn, its memory is free
            gradient = waiting.pop(tensor)
            parents, derivative = tensor._parents, tensor._derivative
            if derivative is not None:
                tensor._parents, tensor._derivative = (), _freed
                sent = derivative(gradient) if gradient is not None else [None] * len(parents)
                for parent, part in zip(parents, sent, strict=True):
                    waiting.add(parent, part)
            elif gradient is not None:
                leaves[tensor] = gradient
        return leaves

    # The operators are the primitive operations, whose derivatives stand in operations.py.
    def __add__(self, other: Any) -> "Tensor":
        return operations.add(self, other)

    def __sub__(self, other: Any) -> "Tensor":
        return operations.subtract(self, other)

    def __mul__(self, other: Any) -> "Tensor":
        return operations.multiply(self, other)

    def __truediv__(self, other: Any) -> "Tensor":
        return operations.divide(self, other)

    def __radd__(self, other: Any) -> "Tensor":
        return operations.add(other, self)

    def __rsub__(self, other: Any) -> "Tensor":
        return operations.subtract(other, self)

    def __rmul__(self, other: Any) -> "Tensor":
        return operations.multiply(other, self)

    def __rtruediv__(self, other: Any) -> "Tensor":
        return operations.divide(other, self)

    def __pow__(self, exponent: float | int) -> "Tensor":
        return operations.power(self, exponent)

    def __matmul__(self, other: Any) -> "Tensor":
        return operations.matmul(self, other)

    def __neg__(self) -> "Tensor":
        return operations.negative(self)

    def __getitem__(self, index: Any) -> "Tensor":
        return operations.getitem(self, index)

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> "Tensor":
        return operations.sum(self, axis, keepdims)

    def mean(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> "Tensor":
        return operations.mean(self, axis, keepdims)

    def reshape(self, *shape: int) -> "Tensor":
        return operations.reshape(self, shape)

    def transpose(self, *axes: int) -> "Tensor":
        return operations.transpose(self, axes)


def record(data: Any, parents: tuple[Tensor, ...], derivative: Derivative) -> Tensor:
    """The result of an operation; its history is kept if a parent requires a gradient, outside `no_grad`.

    `derivative` captures arrays, never the result's own tensor: that would be a reference cycle, and the memory of a
    whole forward pass would wait for the garbage collector.
    """
    result = Tensor(data)
    if _mode.recording and any(parent.requires_grad for parent in parents):
        result.requires_grad = True
        result._parents = parents
        result._derivative = derivative
    return result


@contextmanager
def no_grad() -> Iterator[None]:
    """Inside `with no_grad():`, or a function under `@no_grad()`, operations leave no history: intermediate arrays are freed at once."""
    previous, _mode.recording = _mode.recording, False
    try:
        yield
    finally:
        _mode.recording = previous


def is_recording() -> bool:
    """Whether operations leave a history now; a fused operation checks it before it prepares one."""
    return _mode.recording


def _topological_order(root: Tensor) -> list[Tensor]:
    """Every tensor `root` depends on, parents before children.

    Depth first with a stack of our own: a recursive function would overflow on a deep graph, and one that walked paths
    instead of tensors would double its work at each residual connection (2 to the power of the depth).
    """
    order: list[Tensor] = []
    seen = {id(root)}
    stack = [(root, iter(root._parents))]
    while stack:
        tensor, parents = stack[-1]
        for parent in parents:
            if parent.requires_grad and id(parent) not in seen:
                seen.add(id(parent))
                stack.append((parent, iter(parent._parents)))
                break
        else:
            if tensor._derivative is _freed:
                _freed(None)
            order.append(tensor)
            stack.pop()
    return order


class Part:
    """A gradient that is zero outside `index`: what a tensor receives from one of its slices.

    Slices of one tensor (queries, keys and values of one product) then fill one array, instead of each padding its own.
    """

    __slots__ = ("index", "values")

    def __init__(self, index: Any, values: Array) -> None:
        self.index, self.values = index, values


class _Gradients:
    """Gradients on their way, by tensor. A tensor that was used twice gets the sum."""

    def __init__(self) -> None:
        self._arrays: dict[int, Any] = {}  # an id is safe as a key while the list `walk` holds the tensor
        self._ours: set[int] = set()  # arrays made here; others may be shared, and must not be written to

    def add(self, tensor: Tensor, gradient: Gradient | Part | None) -> None:
        """Add what a derivative sent to a parent."""
        if gradient is None or not tensor.requires_grad:
            return
        key, here = id(tensor), self._arrays.get(id(tensor))
        if isinstance(gradient, Part):
            if key not in self._ours:
                self._arrays[key] = np.zeros(tensor.shape, tensor.dtype) if here is None else here.copy()
                self._ours.add(key)
            self._arrays[key][gradient.index] += gradient.values
            return
        gradient = _unbroadcast(gradient, tensor.shape)
        assert gradient.dtype == tensor.dtype, f"gradient {gradient.dtype} of a {tensor.dtype} tensor"
        if here is None:
            self._arrays[key] = gradient
        elif key in self._ours:
            here += gradient
        else:
            self._arrays[key] = here + gradient
            self._ours.add(key)

    def pop(self, tensor: Tensor) -> Gradient | None:
        """The finished gradient of a tensor all of whose users have had their turn."""
        self._ours.discard(id(tensor))
        return self._arrays.pop(id(tensor), None)


def _unbroadcast(gradient: Gradient, shape: tuple[int, ...]) -> Gradient:
    """Sum over the axes that broadcasting repeated: an entry read n times receives n gradients.

    It stands here, once, so that no operation has to think of it.
    """
    if gradient.shape == shape:
        return gradient
    new = gradient.ndim - len(shape)
    repeated = [new + axis for axis, size in enumerate(shape) if size == 1 and gradient.shape[new + axis] > 1]
    summed = gradient.sum(axis=(*range(new), *repeated))
    assert summed.size == np.prod(shape), f"gradient {gradient.shape} does not broadcast from {shape}"
    return summed.reshape(shape)


def _freed(gradient: Any) -> Sequence[Any]:
    """Stands where a derivative was: the arrays it needed are gone."""
    raise RuntimeError(
        "backward() a second time through the same history, which the first call freed; run the forward pass again"
    )


from v3_numpy_deep.autograd import operations  # noqa: E402 - operations needs the class above
