"""Modules that an adapter brings along whole (PEFT's `modules_to_save`): the token embedding and the output matrix.

An adapter that brings one has a weight of its own for it, which trains in full. While the adapter is active, this weight stands
in the module where the base's stood; then the base's is put back, and was never written to. Where both modules share one
weight (Press & Wolf 2017), they share the adapter's too.

Level 1: PEFT's `ModulesToSaveWrapper`. Level 2: the same over torch's modules. Theory: v2_handwritten/finetune/peft/lora.md.

    python -c "from v3_numpy_deep.models.transformer import *; from v3_numpy_deep.finetune.peft.modules_to_save import *; print(select_modules(Transformer(ModelConfig()), ['embed_tokens']))"
"""

from collections.abc import Iterator, Sequence
from typing import Any

from shared_data.errors import UserError
from v3_numpy_deep.autograd import Module, Parameter
from v3_numpy_deep.finetune.peft.target_modules import _is_called


class ModuleCopies(Module):
    """One weight as the base has it and as each adapter has it. `users`: the modules that read it, by their paths."""

    def __init__(self, users: dict[str, Any]) -> None:
        super().__init__()
        self.users = users  # in a dictionary, lest they count as parts of this module
        self.base: Parameter = next(iter(users.values())).weight
        self.adapters = Module()  # holds a parameter for each adapter, by the adapter's name
        self.active: str | None = None

    @property
    def weights(self) -> dict[str | None, Parameter]:
        """The weight of each adapter; None: the base's."""
        return {None: self.base, **dict(self.adapters.named_parameters())}

    def add_adapter(self, name: str) -> None:
        """A new adapter that changes nothing yet: it starts from the base's weight."""
        setattr(self.adapters, name, Parameter(self.base.data.copy()))

    def activate(self, name: str | None) -> None:
        """Put the adapter's weight in place; the base's for None, and for an adapter that brings none."""
        self.active = name if name in self.weights else None
        for module in self.users.values():
            module.weight = self.weights[self.active]


def select_modules(model: Module, names: Sequence[str]) -> list[dict[str, Any]]:
    """The modules that `modules_to_save` means, by their paths: each alone, or both where either is named and they are tied.

    Raises `UserError` for any other name.
    """
    if not names:
        return []
    embedding = "transformer.wte" if model.config.model_type == "gpt2" else "model.embed_tokens"
    modules = {embedding: model.token_embedding, "lm_head": model.lm_head}
    for name in names:
        if not any(_is_called(path, name) for path in modules):
            choices = ", ".join(path.rpartition(".")[2] for path in modules)
            raise UserError(f"modules_to_save: an adapter cannot bring {name!r}; choose among {choices}")
    if model.config.tie_word_embeddings:
        return [modules]
    chosen = [path for path in modules if any(_is_called(path, name) for name in names)]
    return [{path: modules[path]} for path in chosen]


def add_copies(chosen: list[dict[str, Any]], name: str) -> None:
    """Give an adapter a weight of its own for each of the chosen modules; it is not active yet."""
    for users in chosen:
        first = next(iter(users.values()))
        if not hasattr(first, "copies"):
            first.copies = ModuleCopies(users)
        first.copies.add_adapter(name)


def module_copies(model: Module) -> Iterator[ModuleCopies]:
    """All weights that some adapter has a copy of."""
    return (module for module in model.modules() if isinstance(module, ModuleCopies))
