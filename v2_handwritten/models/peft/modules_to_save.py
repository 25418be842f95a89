"""Modules that an adapter brings along whole (PEFT's `modules_to_save`): the token embedding and the output matrix.

An adapter that brings one has a weight of its own for it, which trains in full. While the adapter is active, this weight stands
in the module where the base's stood; then the base's is put back, and was never written to. Where both modules share one
weight (Press & Wolf 2017), they share the adapter's too.

Level 1: PEFT's `ModulesToSaveWrapper`. Level 3: the same over its own modules. Theory: lora.md.

    uv run python -c "from v2_handwritten.models.transformer import *; from shared_data.peft.target_modules import *; print(select_modules(Transformer(ModelConfig()), ['embed_tokens']))"
"""

from typing import Any

from torch import nn

from shared_data.peft.layers import CopiedWeight


class ModuleCopies(CopiedWeight, nn.Module):
    """One weight as the base has it and as each adapter has it."""

    def __init__(self, users: dict[str, Any]) -> None:
        super().__init__()
        self.users = users  # in a dictionary, lest they count as parts of this module
        self.base = next(iter(users.values())).weight
        self.adapters = nn.Module()

    def add_adapter(self, name: str) -> None:
        """A new adapter that changes nothing yet: it starts from the base's weight."""
        setattr(self.adapters, name, nn.Parameter(self.base.detach().clone()))
