"""The engine of level 3: tensors with a history, operations with their derivatives, modules, a gradient check."""

from v3_numpy_deep.autograd.module import Module, ModuleDict, ModuleList, Parameter
from v3_numpy_deep.autograd.tensor import Array, Tensor, is_recording, no_grad, record

__all__ = [
    "Array",
    "Module",
    "ModuleDict",
    "ModuleList",
    "Parameter",
    "Tensor",
    "is_recording",
    "no_grad",
    "record",
]
