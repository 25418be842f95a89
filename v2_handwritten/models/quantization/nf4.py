"""NF4 for inference: QLoRA's layer (models/peft/qlora.py) as a checkpoint of bitsandbytes holds it.

The scales stay in float32, as `BitsAndBytesConfig` has it by default; files with double quantization are read as well.

Level 1: bitsandbytes. Level 3: the same in NumPy. Theory: v2_handwritten/models/peft/qlora.md.

    uv run python -c "from v2_handwritten.models.quantization.nf4 import *; from v2_handwritten.models.blocks.linear import Linear; print(Nf4Linear(Linear(64, 8)).tensors().keys())"
"""

from typing import Any

import torch
from torch import Tensor, nn

from shared_data.peft.nf4 import NF4_CODES, dynamic_codes
from shared_data.quantization.config import BLOCK_SIZE, Quantization
from shared_data.quantization.nf4_state import read_state, write_state
from v2_handwritten.models.blocks.linear import Conv1D
from v2_handwritten.models.peft.qlora import QuantizedLinear, QuantizedTensor

_STATE = "weight.quant_state.bitsandbytes__nf4"


class Nf4Linear(QuantizedLinear):
    """Stands in place of a `Linear` or `Conv1D`, with its weight in NF4, always as [out, in]. It does not train."""

    def __init__(self, base: nn.Module, quantized: QuantizedTensor | None = None) -> None:
        super().__init__(base, BLOCK_SIZE, double_quantization=False, quantized=quantized)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds in place of the weight, by the ends of the names."""
        quantized, offset = self.quantized, self.quantized.offset
        dtype = str(self.dtype).removeprefix("torch.")
        state = write_state(self.shape, dtype, None if offset is None else offset.item())
        tensors = {
            "weight": quantized.codes.unsqueeze(1),
            "weight.absmax": _as_stored(quantized.scales),
            "weight.quant_map": torch.tensor(NF4_CODES),
            _STATE: torch.from_numpy(state),
        }
        if quantized.nested_scales is not None:
            tensors["weight.nested_absmax"] = _as_stored(quantized.nested_scales)
            tensors["weight.nested_quant_map"] = torch.from_numpy(
                dynamic_codes()
            ).clone()  # one each: a file has none twice
        return tensors

    @classmethod
    def from_tensors(
        cls, base: nn.Module, tensors: dict[str, Tensor], quantization: Quantization
    ) -> "Nf4Linear":
        """The layer that a checkpoint holds in place of `base`. Raises `UserError` where its state is damaged."""
        layer: Any = base
        shape = tuple(layer.weight.T.shape if isinstance(base, Conv1D) else layer.weight.shape)
        nested, scales = quantization.double_quantization, tensors["weight.absmax"]
        offset = read_state(tensors[_STATE].cpu().numpy(), shape, "model.safetensors", nested)
        quantized = QuantizedTensor(tensors["weight"].flatten(), scales, shape, BLOCK_SIZE)
        if offset is not None:
            quantized.nested_scales = tensors["weight.nested_absmax"]
            quantized.offset = torch.tensor(offset, device=scales.device)
        return cls(base, quantized)


def _as_stored(scales: Tensor) -> Tensor:
    """Scales as the file has them: codes as they are, else float32, whatever the model was cast to."""
    return scales.float() if scales.is_floating_point() else scales
