"""NF4 for inference: QLoRA's layer (models/peft/qlora.py) as a checkpoint of bitsandbytes holds it.

The scales stay in float32, as `BitsAndBytesConfig` has it by default; files with double quantization are read as well.

Level 1: bitsandbytes. Level 2: the same in torch. Theory: v2_handwritten/models/peft/qlora.md.

    uv run python -c "from v3_numpy_deep.models.quantization.nf4 import *; from v3_numpy_deep.models.blocks.linear import Linear; print(Nf4Linear(Linear(64, 8)).tensors().keys())"
"""

import numpy as np

from shared_data.peft.nf4 import NF4_CODES, dynamic_codes
from shared_data.quantization.config import BLOCK_SIZE, Quantization
from shared_data.quantization.nf4_state import read_state, write_state
from v3_numpy_deep.autograd import Array, Module
from v3_numpy_deep.models.blocks.linear import Conv1D
from v3_numpy_deep.models.peft.qlora import QuantizedLinear, QuantizedTensor

_STATE = "weight.quant_state.bitsandbytes__nf4"


class Nf4Linear(QuantizedLinear):
    """Stands in place of a `Linear` or `Conv1D`, with its weight in NF4, always as [out, in]. It does not train."""

    def __init__(self, base: Module, quantized: QuantizedTensor | None = None) -> None:
        super().__init__(base, BLOCK_SIZE, double_quantization=False, quantized=quantized)

    def tensors(self) -> dict[str, Array]:
        """What a checkpoint holds in place of the weight, by the ends of the names."""
        quantized, offset = self.quantized, self.quantized.offset
        tensors = {
            "weight": quantized.codes[:, None],
            "weight.absmax": quantized.scales,
            "weight.quant_map": np.array(NF4_CODES, np.float32),
            _STATE: write_state(quantized.shape, str(self.dtype), None if offset is None else float(offset)),
        }
        if quantized.nested_scales is not None:
            tensors["weight.nested_absmax"] = quantized.nested_scales
            tensors["weight.nested_quant_map"] = dynamic_codes()
        return tensors

    @classmethod
    def from_tensors(cls, base: Module, tensors: dict[str, Array], quantization: Quantization) -> "Nf4Linear":
        """The layer that a checkpoint holds in place of `base`. Raises `UserError` where its state is damaged."""
        weight, scales = base.weight.data, tensors["weight.absmax"]
        shape = weight.T.shape if isinstance(base, Conv1D) else weight.shape
        offset = read_state(tensors[_STATE], shape, "model.safetensors", quantization.double_quantization)
        quantized = QuantizedTensor(tensors["weight"].reshape(-1), scales, shape, BLOCK_SIZE)
        if offset is not None:
            quantized.nested_scales = tensors["weight.nested_absmax"]
            quantized.offset = np.float32(offset)
        return cls(base, quantized)
