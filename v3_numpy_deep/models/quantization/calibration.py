"""Calibration: what the inputs of each linear layer look like on some text, block by block.

GPTQ needs Σ x xᵀ of a layer's inputs, AWQ the mean of |x| as well. All sequences pass the first block, then all the second, and so on: only
the residual stream is kept, and the statistics of one block. What the caller changes in a block (GPTQ quantizes it) is in the input of
the next one, so that later blocks make up for earlier ones.

Level 2: the same in torch. Theory: v2_handwritten/models/quantization/gptq.md.

    for layers in calibrated_blocks(model, sequences): ...
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from shared_data.peft.target_modules import linear_layers
from shared_data.quantization.blocks import input_groups
from v3_numpy_deep.autograd import Array, Module, ModuleList, Tensor, no_grad
from v3_numpy_deep.models.packing import Packing
from v3_numpy_deep.models.transformer import Transformer

ROWS = 8  # sequences in one forward pass


class InputStatistics:
    """Sums over the inputs x of a layer: Σ x xᵀ (`hessian`, in float64), and the mean of |x|."""

    def __init__(self, in_features: int) -> None:
        self.hessian: Any = np.zeros((in_features, in_features))
        self._magnitudes: Any = np.zeros(in_features)
        self.count = 0

    def add(self, x: Float[Tensor, "*rows I"]) -> None:
        """Count some inputs in."""
        rows = x.data.reshape(-1, x.shape[-1])
        self.hessian += rows.T @ rows
        self._magnitudes += np.abs(rows).sum(axis=0)
        self.count += len(rows)

    @property
    def mean_magnitude(self) -> Float[Array, " I"]:
        """The mean of |x| for each input feature."""
        return self._magnitudes / max(1, self.count)


class Recorder(Module):
    """Stands around a linear layer for a while, and counts its inputs."""

    def __init__(self, layer: Any, in_features: int) -> None:
        super().__init__()
        self.layer, self.statistics = layer, InputStatistics(in_features)

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows o"]:
        """What the layer computes."""
        self.statistics.add(x)
        return self.layer(x)

    @property
    def weight(self) -> Any:
        """Latent attention reads a weight by itself."""
        return self.layer.weight


class FirstInput(Module):
    """Stands in place of all blocks for a while, and keeps what the first of them would read."""

    def forward(self, x: Float[Tensor, "B T C"], shared: Any) -> Float[Tensor, "B T C"]:
        """Nothing is computed."""
        self.x, self.shared = x, shared
        return x


def calibrated_blocks(
    model: Transformer, sequences: Int[Array, "N T"]
) -> Iterator[list[tuple[list[str], InputStatistics]]]:
    """For each block, its layers by path, those that read the same vector together, with the statistics of that vector.

    Quantize the layers of a block before the next one is asked for.
    """
    places = {place.path: place for place in linear_layers(model)}
    name = "h" if model.config.model_type == "gpt2" else "layers"
    blocks: Any = getattr(model.body, name)
    parts = np.array_split(sequences, range(ROWS, len(sequences), ROWS))
    inputs = [first_input(model, name, rows) for rows in parts]
    for block, groups in zip(blocks, input_groups(model.config), strict=True):
        recorded = [places[group[0]] for group in groups]
        recorders = [Recorder(place.layer, layer_weight(place.layer).shape[1]) for place in recorded]
        for place, recorder in zip(recorded, recorders, strict=True):
            place.replace(recorder)
        run_block(block, inputs)
        for place, recorder in zip(recorded, recorders, strict=True):
            place.replace(recorder.layer)
        yield [(group, recorder.statistics) for group, recorder in zip(groups, recorders, strict=True)]
        if block is not blocks[len(blocks) - 1]:
            inputs = run_block(block, inputs)


def run_block(block: Module, inputs: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """What the next block reads."""
    with no_grad():
        return [(block(x, shared), shared) for x, shared in inputs]


def first_input(model: Transformer, name: str, input_ids: Int[Array, "B T"]) -> tuple[Tensor, Any]:
    """The residual stream before the first block, and what all blocks share. `name`: what the body calls its blocks.

    A document begins with each `bos_token_id`, and sees nothing of those before it, as in pretraining.
    """
    packing = Packing.from_documents(np.cumsum(input_ids == model.config.bos_token_id, axis=-1))
    blocks, keeper = getattr(model.body, name), FirstInput()
    setattr(model.body, name, ModuleList([keeper]))
    try:
        with no_grad():
            model.hidden_states(input_ids, packing.positions(), packing)
    finally:
        setattr(model.body, name, blocks)
    return keeper.x, keeper.shared


def layer_weight(layer: Any) -> Float[Array, "O I"]:
    """The weight of a plain layer as [out, in], a view of it where the layer keeps it as [in, out]."""
    weight = layer.weight.data
    return weight.T if type(layer).__name__ == "Conv1D" else weight
