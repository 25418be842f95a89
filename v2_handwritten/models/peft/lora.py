"""LoRA: freeze the weights, learn a low-rank update beside them: y = W x + (α / r) B A x.

Hu et al. 2021, section 4.1, equation 3; rsLoRA (α / √r): Kalajdzievski 2023; DoRA (length and direction of each row of the
weight apart): Liu et al. 2024, equation 5 and section 4.3. Which layers carry adapters, and which adapter is active, is
bookkeeping without mathematics: `shared_data/peft/adapted_model.py`.

Level 1: PEFT. Level 3: the same classes over its own autograd. Theory: lora.md.

    uv run python -c "from v2_handwritten.models.transformer import *; from v2_handwritten.models.peft.lora import *; print(len(inject_lora(Transformer(ModelConfig()), LoraConfig(), seed=0)))"
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from shared_data.peft.adapted_model import add_adapter
from shared_data.peft.config import LoraConfig
from shared_data.peft.layers import AdaptedLayer
from v2_handwritten.models.blocks.dropout import dropout
from v2_handwritten.models.blocks.linear import Conv1D, Linear
from v2_handwritten.models.peft.modules_to_save import ModuleCopies


class LoraAdapter(nn.Module):
    """One update: two thin matrices and, for DoRA, the length of each row of the adapted weight."""

    def __init__(self, in_features: int, out_features: int, config: LoraConfig) -> None:
        super().__init__()
        self.config = config
        self.lora_A = Linear(in_features, config.r, bias=False)
        self.lora_B = Linear(config.r, out_features, bias=False)
        self.magnitude = nn.Parameter(torch.ones(out_features)) if config.use_dora else None

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
        """B (s A x): two thin products; the matrix B A is never made, and s multiplies the r numbers, not the O."""
        return self.lora_B(self.lora_A(x) * self.config.scaling)

    @torch.no_grad()
    def delta_weight(self) -> Float[Tensor, "O I"]:
        """s B A as a matrix, for merging and for DoRA's norm; no gradient flows through it."""
        return self.lora_B.weight @ self.lora_A.weight * self.config.scaling


class LoraLinear(AdaptedLayer, nn.Module):
    """Stands in place of a linear layer, `base`, and adds what the active adapter has learned.

    `base` may be a `Linear`, a `Conv1D` or a `QuantizedLinear`, and is never written to: `merge` makes a plain layer of base
    and adapter beside it, so that `unmerge` gives back the very bits. Dropout masks are drawn by the generator of `model`, as all others.
    """

    def __init__(self, base: nn.Module, model: nn.Module | None = None) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict()
        self.active: str | None = None
        self.merged: Linear | Conv1D | None = None
        self.from_conv1d = isinstance(base, Conv1D) or getattr(base, "from_conv1d", False)
        self._model = (model,)
        # A new module is in training mode: in a model that is being evaluated, it would drop inputs.
        self.train(base.training)

    def add_adapter(self, name: str, config: LoraConfig, lora_A: Float[np.ndarray, "r I"]) -> LoraAdapter:
        """A new adapter that changes nothing yet: A is `lora_A`, B is 0, the lengths are those of the base's rows."""
        weight = self.base_weight()
        adapter = LoraAdapter(weight.shape[1], weight.shape[0], config).to(weight.device)
        if weight.dtype == torch.float64:  # an adapter is small: below float32 it would only lose precision
            adapter.double()
        for layer in (adapter.lora_A, adapter.lora_B):
            layer.compute_dtype = self.base.compute_dtype
        with torch.no_grad():
            adapter.lora_A.weight.copy_(torch.from_numpy(lora_A))
            if adapter.magnitude is not None:
                adapter.magnitude.copy_(_row_norms(weight))
        self.adapters[name] = adapter.train(self.training)
        return adapter

    def base_weight(self) -> Float[Tensor, "O I"]:
        """The frozen weight, as [out, in] whatever the base's layout."""
        weight = self.base.weight.detach()
        return weight.T if isinstance(self.base, Conv1D) else weight

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
        """Base and active adapter; of a merged layer, their one product."""
        if self.merged is not None:
            return self.merged(x)
        y = self.base(x)
        adapter: LoraAdapter | None = self.active_adapter
        if adapter is None:
            return y
        dropped = dropout(x, adapter.config.lora_dropout, self.training, self.generator)
        update = adapter(dropped)
        if adapter.magnitude is None:
            return y + update.to(y.dtype)
        # Liu et al. 2024, section 4.3: the norm counts as a constant, so that no gradient flows through it.
        gain = adapter.magnitude / _row_norms(self.base_weight() + adapter.delta_weight())
        plain = y if dropped is x else self.base(dropped)
        plain = plain if self.base.bias is None else plain - self.base.bias
        return y + ((gain - 1) * plain + gain * update).to(y.dtype)

    @torch.no_grad()
    def adapted_weight(self) -> Float[Tensor, "O I"]:
        """The weight of one plain layer that computes what base and active adapter do."""
        weight, adapter = self.base_weight(), self.active_adapter
        if adapter is None:
            return weight
        adapted = weight + adapter.delta_weight()
        if adapter.magnitude is not None:
            adapted = adapted * (adapter.magnitude / _row_norms(adapted)).unsqueeze(-1)
        return adapted.to(weight.dtype)

    def merge(self) -> None:
        """Compute with one plain weight from now on. A second call changes nothing: it starts from the base again."""
        O, I = self.base_weight().shape  # noqa: E741 - in and out
        is_conv1d = isinstance(self.base, Conv1D)
        layer: Any = Conv1D(I, O) if is_conv1d else Linear(I, O, bias=False)
        adapted = self.adapted_weight()
        layer.weight = nn.Parameter(adapted.T.contiguous() if is_conv1d else adapted, requires_grad=False)
        layer.bias = self.base.bias
        layer.compute_dtype = self.base.compute_dtype
        self.merged = layer


def inject_lora(model: nn.Module, config: LoraConfig, seed: int, name: str = "default") -> list[nn.Parameter]:
    """Add a new adapter to the model, make it the active one, and return its parameters: the only ones that train.

    Everything else is frozen. Raises `UserError` where `add_adapter` does.
    """
    return add_adapter(model, config, seed, name, LoraLinear, ModuleCopies)


def _row_norms(weight: Float[Tensor, "O I"]) -> Float[Tensor, " O"]:
    """The length of each row: of what an output feature reads."""
    return torch.linalg.vector_norm(weight, dim=1)
