"""The order of quantizing a model: which layer is replaced when. What is computed, a level's functions compute.

quantize_layers(model, "gptq", calibration, 64, level)    # level: the module models/quantization/quantize.py of a level
"""

from dataclasses import replace
from typing import Any, Protocol

from shared_data.errors import UserError
from shared_data.peft.layers import ReplacesLinear
from shared_data.peft.target_modules import LayerPlace, linear_layers
from shared_data.progress import progress
from shared_data.quantization.blocks import writer_of
from shared_data.quantization.config import Quantization
from shared_data.quantization.layers import new_quantization

NEEDS_CALIBRATION = ("gptq", "awq")


class Level(Protocol):
    """What a level computes."""

    def calibrated_blocks(self, model: Any, sequences: Any) -> Any:
        """For each block, groups of layers by path, with the statistics of their input."""

    def round_layer(self, layer: Any, quantization: Quantization) -> Any:
        """A layer with each weight at its nearest level."""

    def gptq_layer(self, layer: Any, statistics: Any, quantization: Quantization) -> Any:
        """A layer with the codes that GPTQ chooses."""

    def move_scale(
        self, readers: list[Any], module: Any, writer: Any, statistics: Any, quantization: Quantization
    ) -> None:
        """Multiply the inputs of some layers by AWQ's scale, and divide what writes them."""


def quantize_layers(model: Any, scheme: str, calibration: Any, group_size: int | None, level: Any) -> Any:
    """Quantize the linear layers of the blocks, in place; the model is returned. Raises `UserError` for what cannot be done."""
    quantization = new_quantization(model, scheme, group_size)
    if scheme in NEEDS_CALIBRATION and (calibration is None or not len(calibration)):
        raise UserError(f"{scheme} needs calibration text; pass some, or choose int4")
    functions: Level = level
    model.eval()
    places = {place.path: place for place in linear_layers(model)}
    if scheme in NEEDS_CALIBRATION:
        with progress(model.config.num_hidden_layers, "quantize", "blocks") as bar:
            for block in functions.calibrated_blocks(model, calibration):
                for paths, statistics in block:
                    group = [places[path] for path in paths]
                    if scheme == "gptq":  # later blocks are calibrated on what this one computes from now on
                        for place in group:
                            place.replace(functions.gptq_layer(place.layer, statistics, quantization))
                    else:
                        _move_scale(model, group, statistics, quantization, functions)
                bar.update(1)
    for place in places.values():
        if not isinstance(place.layer, ReplacesLinear):
            place.replace(functions.round_layer(place.layer, quantization))
    model.config = replace(model.config, quantization=quantization)
    return model


def _move_scale(
    model: Any, group: list[LayerPlace], statistics: Any, quantization: Quantization, functions: Level
) -> None:
    """AWQ, where a scale can move from these layers to what writes their input."""
    writer = writer_of(model.config, group[0].path)
    if writer is not None:
        module = model
        for name in writer.path.split("."):
            module = dict(module.named_children())[name]
        readers = [place.layer for place in group]
        functions.move_scale(readers, module, writer, statistics, quantization)
