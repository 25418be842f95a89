"""What one block of Llama keeps for the backward pass, as in v2_handwritten/models/gradient_checkpointing.md."""

from typing import Any

import torch
from torch import Tensor

from shared_data.model_files.config import ModelConfig
from tests.worked import agrees
from v2_handwritten.models.transformer import Transformer, new_model

PAGE = "v2_handwritten/models/gradient_checkpointing.md"
B, T, C = 4, 256, 128
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": C,
    "intermediate_size": 352,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": T,
}


def kept(model: Transformer) -> float:
    """The numbers that autograd keeps of a forward pass (parameters apart), in units of B T C."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in parameters:
            sizes[memory.data_ptr()] = memory.nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = model.hidden_states(torch.arange(B * T).reshape(B, T) % 512)
    assert hidden.requires_grad
    return sum(sizes.values()) / (B * T * C)


def test_arrays_kept_for_a_block() -> None:
    """What a model of two blocks keeps more than one of one block."""
    rows = []
    for checkpointing in (False, True):
        rows.append([])
        for kernels in ("plain", "fused", "library"):
            of_layers = []
            for layers in (1, 2):
                config = ModelConfig(model_type="llama", num_hidden_layers=layers, **SIZES)
                model = new_model(config, 0, kernels).train()
                model.gradient_checkpointing = checkpointing
                of_layers.append(kept(model))
            rows[-1].append(of_layers[1] - of_layers[0])
    agrees(PAGE, "arrays kept for a block", rows, digits=1)
