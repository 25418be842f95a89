"""The bookkeeping of layers that stand in a model in place of others: which adapters there are, and which one is active.

A level's classes derive from these and its own `Module`, and add the mathematics.
"""

from collections.abc import Iterator
from typing import Any


class ReplacesLinear:
    """A layer in place of a linear one, in any precision."""

    from_conv1d: bool  # a checkpoint has this weight as [in, out]


class AdaptedLayer(ReplacesLinear):
    """A layer that carries adapters beside a frozen `base`; at most one is active, and may be merged with the base."""

    base: Any
    adapters: Any  # a module whose children are the adapters, by name
    active: str | None
    merged: Any  # a plain layer of base and active adapter, or None
    training: bool
    _model: tuple[Any]  # in a tuple, lest it count as a part of this layer

    @property
    def adapter_names(self) -> list[str]:
        """The adapters of this layer, oldest first."""
        return [name for name, _ in self.adapters.named_children()]

    @property
    def active_adapter(self) -> Any:
        """The adapter that takes part, if any."""
        return None if self.active is None else self.adapters[self.active]

    @property
    def generator(self) -> Any:
        """The generator of the model's dropout masks, which a training loop may replace or set anew at every step."""
        return getattr(self._model[0], "dropout_generator", None)

    @property
    def draws_masks(self) -> bool:
        """Whether a forward pass would draw dropout masks now."""
        adapter = self.active_adapter
        return (
            self.training and self.merged is None and adapter is not None and adapter.config.lora_dropout > 0
        )

    def unmerge(self) -> None:
        """Compute with base and adapter again."""
        self.merged = None


class CopiedWeight:
    """One weight as the base has it and as each adapter has it. `users`: the modules that read it, by their paths."""

    users: dict[str, Any]
    base: Any
    adapters: Any  # a module that holds a parameter for each adapter, by the adapter's name
    active: str | None = None

    @property
    def weights(self) -> dict[str | None, Any]:
        """The weight of each adapter; None: the base's."""
        return {None: self.base, **dict(self.adapters.named_parameters())}

    def activate(self, name: str | None) -> None:
        """Put the adapter's weight in place; the base's for None, and for an adapter that brings none."""
        self.active = name if name in self.weights else None
        for module in self.users.values():
            module.weight = self.weights[self.active]


def adapted_layers(model: Any) -> Iterator[Any]:
    """All layers that carry adapters."""
    return (module for module in model.modules() if isinstance(module, AdaptedLayer))


def copied_weights(model: Any) -> Iterator[Any]:
    """All weights that some adapter has a copy of."""
    return (module for module in model.modules() if isinstance(module, CopiedWeight))
