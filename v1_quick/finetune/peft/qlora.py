"""QLoRA: bitsandbytes' NF4, and its `Linear4bit` in place of linear layers. PEFT hangs adapters on these as on any other.

A model that is loaded from a folder needs one argument: `from_pretrained(folder, quantization_config=BitsAndBytesConfig(
load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True))`; this is for one that is in memory.

    python -c "import torch; from v1_quick.finetune.peft.qlora import *; x = torch.randn(2, 64); print(dequantize_nf4(quantize_nf4(x)) - x)"
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, get_4bit_type, quantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shared_data.errors import UserError
from v1_quick.models.transformer import Transformer
from v1_quick.pretrain.components.muon import is_hidden

NF4_CODES = tuple(get_4bit_type("nf4", "cpu").tolist())
_OUTPUT_LAYERS = ("lm_head", "score")


@dataclass(frozen=True)
class QuantizationConfig:
    """How the base is stored; the same fields at all levels."""

    block_size: int = 64  # weights that share a scale
    double_quantization: bool = True  # store the scales themselves in 8 bits
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"

    def __post_init__(self) -> None:
        if self.block_size not in (32, 64, 128, 256, 512, 1024, 2048, 4096):
            raise UserError(
                f"blocks of {self.block_size} weights are not among 32, 64, 128, … 4096; choose one of these"
            )


def quantize_nf4(
    x: Tensor, block_size: int = 64, double_quantization: bool = True
) -> tuple[Tensor, QuantState]:
    """The codes, two a byte, and the scales."""
    return quantize_4bit(x, blocksize=block_size, compress_statistics=double_quantization, quant_type="nf4")


def dequantize_nf4(quantized: tuple[Tensor, QuantState]) -> Tensor:
    """Each element's level times its block's scale."""
    return dequantize_4bit(*quantized)


def quantize_model(model: Transformer, config: QuantizationConfig) -> None:
    """Replace linear layers of the blocks by quantized ones; embeddings, norms and the output matrix stay as they are."""
    targets = config.target_modules
    for path, module in list(model.library.named_modules()):
        chosen = targets == "all-linear" or any(f".{path}".endswith(f".{target}") for target in targets)
        if isinstance(module, nn.Linear | Conv1D) and path not in _OUTPUT_LAYERS and chosen:
            model.library.set_submodule(path, _quantized(module, config))


def memory_bytes(model: Transformer, optimizer: Literal["adamw", "muon"] = "adamw") -> dict[str, int]:
    """What training keeps besides activations: weights, gradients, moments (float32), and their sum.

    AdamW has two moments of every parameter, Muon one of each hidden matrix.
    """
    parameters: list[Any] = list(model.parameters())
    weights = sum(parameter.nbytes for parameter in parameters)
    for state in (p.quant_state for p in parameters if isinstance(p, Params4bit)):
        weights += state.absmax.nbytes  # codes of the scales, or the scales themselves
        if state.nested:
            weights += state.state2.absmax.nbytes + state.offset.nbytes
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = sum(parameter.nbytes for parameter in trainable)
    moments = sum(
        4 * parameter.numel() * (1 if optimizer == "muon" and is_hidden(name, parameter) else 2)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    )
    return {
        "weights": weights,
        "gradients": gradients,
        "moments": moments,
        "total": weights + gradients + moments,
    }


def _quantized(layer: nn.Linear | Conv1D, config: QuantizationConfig) -> Linear4bit:
    """bitsandbytes' layer with the weight of this one, [out, in]."""
    weight = layer.weight.data.T.contiguous() if isinstance(layer, Conv1D) else layer.weight.data
    out_features, in_features = weight.shape
    if weight.device.type == "cpu" and in_features % config.block_size:
        # Found by tests/parity/test_qlora.py: where a row ends inside a block, 0.50.2 takes the scales of other blocks.
        raise UserError(
            f"bitsandbytes decodes {in_features} columns in blocks of {config.block_size} wrongly on a CPU; "
            "choose a block size that divides the layer's width, such as 32"
        )
    quantized = Linear4bit(in_features, out_features, layer.bias is not None, compute_dtype=torch.float32)
    quantized.bias = layer.bias
    quantized.weight = Params4bit(
        weight,
        requires_grad=False,
        blocksize=config.block_size,
        compress_statistics=config.double_quantization,
        quant_type="nf4",
        module=quantized,
    )
    # In evaluation it would compute in bfloat16 on processors that have it, and leave the codes in another order.
    quantized.support_avx512bf16_for_cpu = False
    quantized.train(layer.training)
    return quantized.to(weight.device)  # the move quantizes
