"""How a parameter is stored in a checkpoint, where that differs from the model: experts.

A model of transformers 5 (and ours) has the matrices of all experts of a layer in one array, `mlp.experts.gate_up_proj` [E, 2F, C]. Its
checkpoints, and those on the hub, have a tensor for each matrix of each expert. Mixtral has other names for them, too.

    uv run python -c "from shared_data.model_files.stored_names import *; from shared_data.model_files.config import ModelConfig; print(stored_tensors('model.layers.0.mlp.experts.down_proj', ModelConfig('mixtral', num_local_experts=2)))"
"""

from typing import Any

from shared_data.model_files.config import ModelConfig

Index = tuple[Any, ...]  # which part of the parameter a tensor is; () is all of it

# The names of an expert's three matrices: gate, up, down.
_MATRICES = {"mixtral": ("w1", "w3", "w2")}


def stored_tensors(name: str, config: ModelConfig) -> list[tuple[str, Index]]:
    """The tensors that hold a parameter: the name of each, and which part of the parameter it is."""
    if config.model_type == "mixtral":
        name = name.replace(".mlp.", ".block_sparse_moe.")
    prefix, _, matrix = name.partition(".experts.")
    if not matrix or config.clamped_experts:  # gpt-oss stores them as it computes with them
        return [(name, ())]
    gate, up, down = _MATRICES.get(config.model_type, ("gate_proj", "up_proj", "down_proj"))
    F = config.moe_intermediate_size
    pieces: list[tuple[str, Index]] = []
    for expert in range(config.num_local_experts):
        if matrix == "down_proj":
            pieces.append((f"{prefix}.experts.{expert}.{down}.weight", (expert,)))
        else:
            pieces.append((f"{prefix}.experts.{expert}.{gate}.weight", (expert, slice(0, F))))
            pieces.append((f"{prefix}.experts.{expert}.{up}.weight", (expert, slice(F, 2 * F))))
    return pieces


def part_shape(shape: tuple[int, ...], index: Index) -> tuple[int, ...]:
    """The shape of that part of an array."""
    sizes = [
        len(range(*each.indices(size)))
        for each, size in zip(index, shape, strict=False)
        if isinstance(each, slice)
    ]
    return (*sizes, *shape[len(index) :])
