"""Which matrices are quantized, and what a checkpoint holds in place of each: names, shapes and types.

Quantized are the linear layers of the blocks. Embeddings, the output matrix, norms, routers and the matrices of experts stay as they are,
as with bitsandbytes in transformers.

    uv run python -c "from shared_data.quantization.layers import *; print(quantized_layers(ModelConfig(num_hidden_layers=1)))"
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.initialization import parameter_shapes
from shared_data.peft.layers import ReplacesLinear
from shared_data.peft.target_modules import linear_layers
from shared_data.quantization.config import BLOCK_SIZE, FORMATS, SCHEMES, Quantization
from shared_data.quantization.packing import CODES_PER_INTEGER

_ROUTERS = (".mlp.gate.weight", ".mlp.router.weight")
_SCALES_PER_BLOCK = 256  # of NF4's second quantization
_FLOATS = ("F32", "F16", "BF16")
GROUP_SIZES = (128, 64, 32, 16)


Shape = tuple[int, ...]


class Stored(NamedTuple):
    """A tensor of a checkpoint: its shape (None: any), and the types it may have."""

    shape: tuple[int, ...] | None
    types: tuple[str, ...]


def quantized_layers(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """The layers to quantize, by path: how many features each writes and reads, (O, I)."""
    in_first = config.model_type == "gpt2"  # its matrices are [in, out]
    return {
        name.removesuffix(".weight"): (shape[::-1] if in_first else shape)
        for name, shape in parameter_shapes(config).items()
        if len(shape) == 2
        and name.endswith(".weight")
        and (".layers." in name or ".h." in name)
        and not name.endswith(_ROUTERS)
    }


def stored_layer(out_features: int, in_features: int, quantization: Quantization) -> dict[str, Stored]:
    """What stands for the weight of one layer: the ends of the names of its tensors."""
    O, I = out_features, in_features  # noqa: E741 - out and in
    if quantization.format == "int8":
        return {"weight": Stored((O, I), ("I8",)), "SCB": Stored((O,), ("F32",))}
    if quantization.format == "int4":
        groups = 1 if quantization.group_size == -1 else -(-I // quantization.group_size)
        return {
            "qweight": Stored((I // CODES_PER_INTEGER, O), ("I32",)),
            "qzeros": Stored((groups, O // CODES_PER_INTEGER), ("I32",)),
            "scales": Stored((groups, O), _FLOATS),
            "g_idx": Stored((I,), ("I32",)),
        }
    blocks = -(-O * I // BLOCK_SIZE)
    tensors = {
        "weight": Stored((-(-O * I // 2), 1), ("U8",)),
        "weight.absmax": Stored((blocks,), ("U8" if quantization.double_quantization else "F32",)),
        "weight.quant_map": Stored((16,), ("F32",)),
        "weight.quant_state.bitsandbytes__nf4": Stored(None, ("U8",)),
    }
    if quantization.double_quantization:
        tensors |= {
            "weight.nested_absmax": Stored((-(-blocks // _SCALES_PER_BLOCK),), ("F32",)),
            "weight.nested_quant_map": Stored((256,), ("F32",)),
        }
    return tensors


def stored_layers(config: ModelConfig) -> dict[str, Stored]:
    """All tensors that a quantized checkpoint has in place of weights, by name. Raises `UserError` for a format that only level 1 reads."""
    if config.quantization is None:
        return {}
    config.quantization.check_readable(FORMATS, "use level 1, or quantize the plain model at this one")
    return {
        f"{path}.{end}": stored
        for path, (O, I) in quantized_layers(config).items()  # noqa: E741 - out and in
        for end, stored in stored_layer(O, I, config.quantization).items()
    }


def plain_parameters(config: ModelConfig, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Those of a model's parameters that a quantized checkpoint has as they are."""
    codes = quantized_layers(config) if config.quantization is not None else {}
    return {name: shape for name, shape in shapes.items() if name.removesuffix(".weight") not in codes}


def place_quantized_layers(
    model: Any, tensors: Mapping[str, Any], layer_classes: Mapping[str, Any]
) -> dict[str, Any]:
    """Replace the linear layers of a model's blocks by the quantized ones that a checkpoint's `tensors` hold; the other tensors are returned.

    layer_classes: a level's classes, by format. Raises `UserError` for damaged tensors.
    """
    config: ModelConfig = model.config
    rest, places = dict(tensors), {place.path: place for place in linear_layers(model)}
    if config.quantization is None:
        return rest
    make = layer_classes[config.quantization.format].from_tensors
    for path, (O, I) in quantized_layers(config).items():  # noqa: E741 - out and in
        own = {end: rest.pop(f"{path}.{end}") for end in stored_layer(O, I, config.quantization)}
        if "g_idx" in own and not 0 <= own["g_idx"].min() <= own["g_idx"].max() < len(own["scales"]):
            raise UserError(f"{path}.g_idx names groups that there are not; copy the file again")
        places[path].replace(make(places[path].layer, own, config.quantization))
    return rest


def quantized_tensors(model: Any) -> dict[str, Any]:
    """The tensors of all quantized layers of a model, by the names of a checkpoint."""
    return {
        f"{place.path}.{end}": tensor
        for place in linear_layers(model)
        if hasattr(place.layer, "tensors")
        for end, tensor in place.layer.tensors().items()
    }


def new_quantization(model: Any, scheme: str, group_size: int | None) -> Quantization:
    """How a model will be stored that is quantized by a scheme.

    Raises `UserError` for what `plan_quantization` refuses, and for a model that is quantized or carries adapters already.
    """
    config: ModelConfig = model.config
    if config.quantization is not None:
        raise UserError(
            f"the model is quantized already ({config.quantization.name}); quantize the plain model"
        )
    if any(isinstance(place.layer, ReplacesLinear) for place in linear_layers(model)):
        raise UserError("the model carries adapters; merge them first")
    return plan_quantization(config, scheme, group_size)


def plan_quantization(config: ModelConfig, scheme: str, group_size: int | None) -> Quantization:
    """What a scheme makes of a model, by its configuration alone. Raises `UserError` for an unknown scheme and a group size that does not fit."""
    if scheme not in SCHEMES:
        raise UserError(f"there is no scheme {scheme!r}; choose one of {', '.join(SCHEMES)}")
    if scheme in ("int8", "nf4"):
        if group_size is not None:
            raise UserError(f"{scheme} has no groups; leave --group-size out")
        return Quantization(scheme, scheme)
    if scheme == "awq" and (config.num_local_experts or config.kv_lora_rank):
        raise UserError(
            f"AWQ folds its scales into the blocks of Llama and GPT-2, not of {config.model_type}; choose --scheme gptq or int4"
        )
    return Quantization("int4", scheme, choose_group_size(config, group_size))


def choose_group_size(config: ModelConfig, group_size: int | None) -> int:
    """The group size to quantize with: the one that is asked for, or the largest of `GROUP_SIZES` that suits every layer's input.

    It divides each, and is at most a quarter of the narrowest: 128 from 512 inputs on, 32 of 128. Narrow layers lose more by rounding.
    Raises `UserError` where it does not divide them, or where codes do not fill whole integers.
    """
    layers = quantized_layers(config)
    for path, sizes in layers.items():
        if any(size % CODES_PER_INTEGER for size in sizes):
            raise UserError(
                f"{path} is {sizes[0]} × {sizes[1]}, and codes of 4 bits are stored by eights; choose --scheme int8 or nf4"
            )
    inputs = sorted({in_features for _, in_features in layers.values()})
    fitting = [size for size in GROUP_SIZES if not any(each % size for each in inputs)]
    if group_size is None:
        return next((size for size in fitting if 4 * size <= inputs[0]), CODES_PER_INTEGER)
    if group_size < 1 or any(each % group_size for each in inputs):
        choices = ", ".join(map(str, fitting or [CODES_PER_INTEGER]))
        raise UserError(
            f"groups of {group_size} do not divide the layers' inputs of {', '.join(map(str, inputs))}; choose --group-size {choices}"
        )
    return group_size
