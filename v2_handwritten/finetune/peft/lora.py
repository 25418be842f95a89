"""LoRA: freeze the weights, learn a low-rank update beside them: y = W x + (α / r) B A x.

Hu et al. 2021, section 4.1, equation 3; rsLoRA (α / √r): Kalajdzievski 2023; DoRA (length and direction of each row of the
weight apart): Liu et al. 2024, equation 5 and section 4.3. Several adapters may hang on one base; one of them is active.

Level 1: PEFT. Level 3: the same classes over its own autograd. Theory: lora.md.

    python -c "from v2_handwritten.models.transformer import *; from v2_handwritten.finetune.peft.lora import *; print(len(inject_lora(Transformer(ModelConfig()), LoraConfig(), seed=0)))"
"""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from shared_data.errors import UserError
from v2_handwritten.finetune.peft.modules_to_save import add_copies, module_copies, select_modules
from v2_handwritten.finetune.peft.target_modules import linear_layers, select_layers
from v2_handwritten.models.blocks.dropout import dropout
from v2_handwritten.models.blocks.linear import Conv1D, Linear


@dataclass(frozen=True)
class LoraConfig:
    """What an adapter is; the same fields at all levels."""

    rank: int = 8  # columns of B and rows of A
    alpha: float = 16.0  # strength of the update, before the division by the rank
    dropout: float = 0.0  # of the adapter's input, in training only
    target_modules: tuple[str, ...] | Literal["all-linear"] = ("q_proj", "v_proj")
    use_rslora: bool = False  # divide alpha by √rank, not by the rank
    use_dora: bool = False  # learn the length of each row of the weight apart from its direction
    modules_to_save: tuple[str, ...] = ()  # whole modules that train and are saved beside the adapters

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"LoRA of rank {self.rank} has no weights; choose a rank of at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"LoRA dropout {self.dropout} is no probability below 1; choose one in [0, 1)")
        both = sorted(set(self.modules_to_save) & set(self.target_modules))
        if both:
            raise UserError(
                f"{both[0]} stands in target_modules and in modules_to_save; a module that trains whole needs no update beside it: choose one"
            )

    @property
    def scaling(self) -> float:
        """What the update is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


class LoraAdapter(nn.Module):
    """One update: two thin matrices and, for DoRA, the length of each row of the adapted weight."""

    def __init__(self, in_features: int, out_features: int, config: LoraConfig) -> None:
        super().__init__()
        self.config = config
        self.lora_A = Linear(in_features, config.rank, bias=False)
        self.lora_B = Linear(config.rank, out_features, bias=False)
        self.magnitude = nn.Parameter(torch.ones(out_features)) if config.use_dora else None

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
        """B (s A x): two thin products; the matrix B A is never made, and s multiplies the r numbers, not the O."""
        return self.lora_B(self.lora_A(x) * self.config.scaling)

    @torch.no_grad()
    def delta_weight(self) -> Float[Tensor, "O I"]:
        """s B A as a matrix, for merging and for DoRA's norm; no gradient flows through it."""
        return self.lora_B.weight @ self.lora_A.weight * self.config.scaling


class LoraLinear(nn.Module):
    """Stands in place of a linear layer, `base`, and adds what the active adapter has learned.

    `base` may be a `Linear`, a `Conv1D` or a `QuantizedLinear`, and is never written to: `merge` makes a plain layer of base
    and adapter beside it, so that `unmerge` gives back the very bits. Dropout masks are drawn by the generator of `model`, as all others.
    """

    replaces_linear = True
    base: Any

    def __init__(self, base: nn.Module, model: nn.Module | None = None) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict()
        self.active: str | None = None
        self.merged: Linear | Conv1D | None = None
        self._model = (model,)  # in a tuple, lest it count as a part of this layer
        # A new module is in training mode: in a model that is being evaluated, it would drop inputs.
        self.train(base.training)

    def add_adapter(self, name: str, config: LoraConfig, lora_A: Float[np.ndarray, "r I"]) -> LoraAdapter:
        """A new adapter that changes nothing yet: A is given, B is 0, the lengths are those of the base's rows."""
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

    @property
    def generator(self) -> torch.Generator | None:
        """The generator of the model's dropout masks, which a training loop may replace or set anew at every step."""
        return getattr(self._model[0], "dropout_generator", None)

    @property
    def draws_masks(self) -> bool:
        """Whether a forward pass would draw dropout masks now."""
        adapter = self.active_adapter
        return self.training and self.merged is None and adapter is not None and adapter.config.dropout > 0

    @property
    def adapter_names(self) -> list[str]:
        """The adapters that hang here, oldest first."""
        return [name for name, _ in self.adapters.named_children()]

    @property
    def active_adapter(self) -> LoraAdapter | None:
        """The adapter that takes part, if any."""
        return None if self.active is None else cast(LoraAdapter, self.adapters[self.active])

    def base_weight(self) -> Float[Tensor, "O I"]:
        """The frozen weight, as [out, in] whatever the base's layout."""
        weight = self.base.weight.detach()
        return weight.T if isinstance(self.base, Conv1D) else weight

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
        """Base and active adapter; of a merged layer, their one product."""
        if self.merged is not None:
            return self.merged(x)
        y = self.base(x)
        adapter = self.active_adapter
        if adapter is None:
            return y
        dropped = dropout(x, adapter.config.dropout, self.training, self.generator)
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

    def unmerge(self) -> None:
        """Compute with base and adapter again."""
        self.merged = None


def initial_down_projection(
    path: str, rank: int, in_features: int, seed: int
) -> Float[np.ndarray, "{rank} {in_features}"]:
    """Uniform in ±1/√in_features, which is Kaiming's bound for a = √5, as PEFT draws it; the same at all levels.

    Each layer has a random stream of its own, by (seed, path), as in models/initialization.py.
    """
    bound = 1 / math.sqrt(in_features)
    generator = np.random.default_rng([seed, zlib.crc32(path.encode())])
    return generator.uniform(-bound, bound, (rank, in_features)).astype(np.float32)


def inject_lora(model: nn.Module, config: LoraConfig, seed: int, name: str = "default") -> list[nn.Parameter]:
    """Hang a new adapter on the model, make it the active one, and return its parameters: the only ones that train.

    Everything else is frozen. Raises `UserError` for a target module the model has not, for a module that cannot be
    saved with an adapter, for a name that is taken, and while adapters are merged.
    """
    places = select_layers(model, config.target_modules)
    whole = select_modules(model, config.modules_to_save)
    _check_name(model, name)
    for place in places:
        layer = place.layer
        if not isinstance(layer, LoraLinear):
            layer = LoraLinear(layer, model)
            place.replace(layer)
        in_features = layer.base_weight().shape[1]
        layer.add_adapter(name, config, initial_down_projection(place.path, config.rank, in_features, seed))
    add_copies(whole, name)
    set_adapter(model, name)
    return lora_parameters(model)


def set_adapter(model: nn.Module, name: str | None) -> None:
    """Make one adapter the active one, and the only thing that trains; None: the base alone, as a reference model is.

    Raises `UserError` if there is no such adapter, and while adapters are merged.
    """
    layers = list(_lora_layers(model))
    _check_unmerged(layers)
    known = sorted({known for layer in layers for known in layer.adapter_names})
    if name is not None and name not in known:
        raise UserError(f"the model has no adapter {name!r}; it has {', '.join(known) or 'none'}")
    for copies in module_copies(model):
        copies.activate(name)
    for parameter in model.parameters():
        parameter.requires_grad = False
    for layer in layers:
        layer.active = name if name in layer.adapter_names else None
    for parameter in lora_parameters(model):
        parameter.requires_grad = True


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the active adapter: its updates, layer by layer, then its whole modules."""
    active = (layer.active_adapter for layer in _lora_layers(model))
    updates = [parameter for adapter in active if adapter is not None for parameter in adapter.parameters()]
    return updates + [copies.weights[copies.active] for copies in module_copies(model) if copies.active]


def merge_lora(model: nn.Module) -> None:
    """Fold the active adapter into plain weights, which cost no more than the base's. Merging again changes nothing.

    Whole modules of the adapter are plain weights already.
    """
    for layer in _lora_layers(model):
        layer.merge()


def unmerge_lora(model: nn.Module) -> None:
    """Back to base and adapter; the base's bits are those it always had."""
    for layer in _lora_layers(model):
        layer.unmerge()


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a plain model that computes the same, by a checkpoint's names: adapters folded in, codes decoded."""
    state = {key: value for key, value in model.state_dict().items() if ".copies." not in key}
    for place in linear_layers(model):
        layer: Any = place.layer
        if getattr(layer, "replaces_linear", False):
            state = {key: value for key, value in state.items() if not key.startswith(place.path + ".")}
            wrapped = isinstance(layer, LoraLinear)
            weight = layer.adapted_weight() if wrapped else layer.weight
            base = layer.base if wrapped else layer
            transposed = isinstance(base, Conv1D) or getattr(base, "from_conv1d", False)
            state[f"{place.path}.weight"] = weight.T if transposed else weight
            if base.bias is not None:
                state[f"{place.path}.bias"] = base.bias.detach()
    return state


def _row_norms(weight: Float[Tensor, "O I"]) -> Float[Tensor, " O"]:
    """The length of each row: of what an output feature reads."""
    return torch.linalg.vector_norm(weight, dim=1)


def _lora_layers(model: nn.Module) -> Iterator[LoraLinear]:
    """All layers that carry adapters."""
    return (module for module in model.modules() if isinstance(module, LoraLinear))


def _check_name(model: nn.Module, name: str) -> None:
    """An adapter's name becomes part of the names of its parameters."""
    layers = list(_lora_layers(model))
    _check_unmerged(layers)
    if any(name in layer.adapter_names for layer in layers):
        raise UserError(f"the model has an adapter {name!r} already; choose another name")
    if not name or "." in name or hasattr(nn.ModuleDict(), name):
        raise UserError(f"{name!r} cannot be the name of an adapter; choose a word without dots")


def _check_unmerged(layers: list[LoraLinear]) -> None:
    """What is merged would go on computing with the adapter that was active then."""
    if any(layer.merged is not None for layer in layers):
        raise UserError("an adapter is merged into the weights; call unmerge_lora(model) first")
