"""What the values of a `config.json` may be: the types of `ModelConfig`'s fields with their bounds, and the entries that are read in ways of their own.

Bounds come before work: a model of 10⁹ layers is refused before a list of them is made.

    uv run python -c "from shared_data.model_files.config_schema import *; print(ConfigJson.read({'model_type': 'llama', 'rope_theta': 1e4}, 'config.json'))"
"""

from dataclasses import fields
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from shared_data.foreign_json import LARGEST_ID, ForeignJson, Size

# What differs from layer to layer stands in lists. The deepest model that was published has 1,000 layers (DeepNet).
MOST_LAYERS = 1000
Layers = Annotated[int, Field(ge=1, le=MOST_LAYERS)]
Count = Annotated[int, Field(ge=0, le=2**24)]  # a size that may be left out: 0
WindowSize = Annotated[int, Field(ge=0, lt=2**31)]
NamedId = Annotated[int, Field(ge=-1, le=LARGEST_ID)]  # some folders write -1 for an id that there is not
Probability = Annotated[float, Field(ge=0, le=1)]
RopeTheta = Annotated[float, Field(gt=0, le=1e15)]


class ConfigJson(ForeignJson):
    """The entries of a config.json that are read before, or otherwise than, the fields of `ModelConfig`. null is as if there were none."""

    model_type: str
    num_hidden_layers: Layers | None = None
    n_layer: Layers | None = None  # gpt2
    num_attention_heads: Size | None = None
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    intermediate_size: Size | None = None
    layer_types: list[str] | None = None
    max_window_layers: WindowSize | None = None
    no_rope_layers: list[Literal[0, 1]] | None = None
    no_rope_layer_interval: Size | None = None
    mlp_only_layers: list[Count] | None = None
    mlp_layer_types: list[str] | None = None
    first_k_dense_replace: Count | None = None
    decoder_sparse_step: Size | None = None
    num_local_experts: Size | None = None
    n_routed_experts: Size | None = None
    num_experts: Count | None = None
    rope_theta: RopeTheta | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    quantization_config: dict[str, Any] | None = None


def check_types(config: Any) -> None:
    """Raise `UserError` for a field of a `ModelConfig` that has another type than it says, or is out of bounds."""
    values = {each.name: getattr(config, each.name) for each in fields(config)}
    kind: Any = type(config)
    _model_of(kind).read(values, remedy="correct it in config.json or copy that again")


@cache
def _model_of(kind: Any) -> type[ForeignJson]:
    """A dataclass's fields as pydantic checks them."""
    types: dict[str, Any] = {each.name: (each.type, ...) for each in fields(kind)}
    return create_model(kind.__name__, __base__=ForeignJson, **types)
