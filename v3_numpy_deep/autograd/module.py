"""Parameters, and the tree of modules that owns them: names, state dictionaries, training mode.

The tree is found by looking at attributes, as in `torch.nn.Module` (which levels 1 and 2 use, and whose names these are), so
`self.q_proj = Linear(...)` in a module called `self_attn` owns the parameter `self_attn.q_proj.weight`. These names are
those of Hugging Face checkpoints.

    uv run python -c "from v3_numpy_deep.models.blocks.linear import Linear; print(dict(Linear(2, 3).named_parameters()))"
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from shared_data.errors import UserError
from v3_numpy_deep.autograd.tensor import Array, Tensor


class Parameter(Tensor):
    """A leaf that training changes."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)


AnyModule = TypeVar("AnyModule", bound="Module")  # a method that returns its own module


class Module:
    """A function with parameters. A subclass assigns parameters and modules in `__init__` and computes in `forward`."""

    def __init__(self) -> None:
        self.training = True

    if TYPE_CHECKING:  # attributes of a subclass, seen through `Module`

        def __getattr__(self, name: str) -> Any: ...

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.forward(*arguments, **keywords)

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        """The modules that are attributes of this one, in the order of assignment."""
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Module))

    def modules(self) -> Iterator["Module"]:
        """This module and all below it."""
        yield self
        for _, child in self.named_children():
            yield from child.modules()

    def _all_named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Every name of every parameter; a shared (tied) parameter has several."""
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield prefix + name, value
        for name, child in self.named_children():
            yield from child._all_named_parameters(f"{prefix}{name}.")

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Parameters with their dotted names; a shared parameter comes once, under its first name."""
        seen: set[int] = set()
        for name, parameter in self._all_named_parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def parameters(self) -> Iterator[Parameter]:
        return (parameter for _, parameter in self.named_parameters())

    def state_dict(self) -> dict[str, Array]:
        """Name to array, a shared one under each of its names. The arrays are the parameters' own: copy to keep."""
        return {name: parameter.data for name, parameter in self._all_named_parameters()}

    def load_state_dict(self, state: Mapping[str, Array], strict: bool = True) -> None:
        """Copy the arrays of `state` into the parameters (converted to their type).

        Raises `UserError` if names are missing or unknown (unless `strict` is off) or a shape differs; then nothing is changed.
        """
        own = dict(self._all_named_parameters())
        if strict and own.keys() != state.keys():
            missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
            raise UserError(
                f"weights do not fit the model: missing {missing}, unknown {unknown}; load weights of the same architecture"
            )
        shared = own.keys() & state.keys()
        for name in shared:
            if own[name].shape != np.shape(state[name]):
                raise UserError(
                    f"{name} has shape {np.shape(state[name])}, but the model expects {own[name].shape}; "
                    "use the config.json that belongs to the weights"
                )
        for name in shared:
            own[name].data[...] = np.asarray(state[name])

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def train(self: AnyModule, mode: bool = True) -> AnyModule:
        """Training mode for this module and all below it: dropout acts."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: AnyModule) -> AnyModule:
        """Evaluation mode: dropout does nothing."""
        return self.train(False)

    def to(self, dtype: Any) -> "Module":
        """Convert all parameters, for example to float64 for a gradient check."""
        for parameter in self.parameters():
            parameter.data = parameter.data.astype(dtype, copy=False)
        return self


class ModuleList(Module):
    """A list of modules whose names are their positions: `layers.0`, `layers.1`, …"""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self._items = list(modules)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        return ((str(index), module) for index, module in enumerate(self._items))

    def __getitem__(self, index: int) -> Module:
        return self._items[index]

    def __iter__(self) -> Iterator[Module]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class ModuleDict(Module):
    """Modules under chosen names, read as attributes or by key."""

    def __init__(self, modules: Mapping[str, Module]) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)

    def __getitem__(self, name: str) -> Module:
        return getattr(self, name)
