"""Mixtures of experts of the three families, with the same random weights at all levels, and what one pass through them gives."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DeepseekV3Config, MixtralConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from shared_data.model_files.config import ModelConfig
from tests.parity.arrays import array
from tests.parity.block_checks import randomise
from v2_handwritten.models.blocks import mixture_of_experts as moe2
from v3_numpy_deep.autograd import Tensor as Tensor3
from v3_numpy_deep.models.blocks import mixture_of_experts as moe3

C, F = 12, 6
SIZES: dict[str, Any] = {"hidden_size": C, "num_attention_heads": 2, "num_local_experts": 8}
GROUPS = {"num_local_experts": 12, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2}


def moe_config(model_type: str = "qwen3_moe", **values: Any) -> ModelConfig:
    """A configuration of which only the mixture of experts is used."""
    width = "intermediate_size" if model_type == "mixtral" else "moe_intermediate_size"
    return ModelConfig(**{"model_type": model_type, width: F} | SIZES | values)


FAMILIES = {
    "mixtral": moe_config("mixtral"),
    "qwen3_moe": moe_config(num_experts_per_tok=3, norm_topk_prob=False),
    "qwen3_moe, norm_topk_prob": moe_config(num_experts_per_tok=3),
    "deepseek_v3": moe_config("deepseek_v3", n_shared_experts=2, norm_topk_prob=False),
    "deepseek_v3, groups": moe_config("deepseek_v3", n_shared_experts=1, routed_scaling_factor=2.5, **GROUPS),
}

LIBRARY = {
    "mixtral": (MixtralConfig, MixtralSparseMoeBlock),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeSparseMoeBlock),
    "deepseek_v3": (DeepseekV3Config, DeepseekV3MoE),
}


def library_block(family: str) -> torch.nn.Module:
    """transformers' block in float64, its parameters (and DeepSeek's bias) random."""
    config = FAMILIES[family]
    settings_class, block_class = LIBRARY[config.model_type]
    theirs = randomise(block_class(settings_class(**config.to_hf(), experts_implementation="eager")))
    if config.scoring_func == "sigmoid":
        bias = array(9, config.num_local_experts, scale=0.3)
        theirs.gate.e_score_correction_bias.copy_(torch.from_numpy(bias))
    return theirs


@contextmanager
def without_float32() -> Iterator[None]:
    """The library casts its router to float32; inside, it stays in float64, so that the rest can be compared to the last digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch, "float32", torch.float64)
        yield


def our_block(level: str, config: ModelConfig, state: dict[str, torch.Tensor], kernels: str) -> Any:
    """The block of level "v2" or "v3" with these weights."""
    if level == "v2":
        block = moe2.MixtureOfExperts(config).double()
        block.load_state_dict(state)
    else:
        block = moe3.MixtureOfExperts(config).to(np.float64)
        block.load_state_dict({name: value.numpy() for name, value in state.items()})
    block.experts.kernels = kernels
    return block


def one_pass(block: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """Output, gradient of x and of every parameter, under a random gradient of the output."""
    direction = array(99, *x.shape)
    if isinstance(block, torch.nn.Module):
        inputs: Any = torch.from_numpy(x.copy()).requires_grad_()
        output = block(inputs)
        output.backward(torch.from_numpy(direction))
        found = {"output": output.detach(), "grad x": inputs.grad}
    else:
        inputs = Tensor3(x.copy(), requires_grad=True)
        output = block(inputs)
        output.backward(direction)
        found = {"output": output.data, "grad x": inputs.grad}
    parameters = {name: p for name, p in block.named_parameters() if p.requires_grad}
    found |= {f"grad {name}": p.grad for name, p in parameters.items()}
    return {name: np.asarray(value) for name, value in found.items()}
