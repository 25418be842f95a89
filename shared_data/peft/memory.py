"""How much memory training takes besides activations: what LoRA and QLoRA save.

uv run python -c "from v2_handwritten.models.transformer import *; from shared_data.peft.memory import *; print(memory_bytes(Transformer(ModelConfig())))"
"""

import math
from collections.abc import Callable
from typing import Any


def memory_bytes(model: Any, has_one_moment: Callable[[str, Any], bool] | None = None) -> dict[str, int]:
    """Bytes of the weights, the gradients, the optimizer's moments (float32), and their sum.

    AdamW has two moments of every parameter; Muon one of each hidden matrix, which `has_one_moment(name, parameter)` says.
    """
    stored = [vars(module.quantized).values() for module in model.modules() if hasattr(module, "quantized")]
    codes = sum(getattr(value, "nbytes", 0) for values in stored for value in values)
    weights = codes + sum(parameter.data.nbytes for parameter in model.parameters())
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    gradients = sum(parameter.data.nbytes for _, parameter in trainable)
    moments = sum(
        4 * math.prod(parameter.shape) * (1 if has_one_moment and has_one_moment(name, parameter) else 2)
        for name, parameter in trainable
    )
    return {
        "weights": weights,
        "gradients": gradients,
        "moments": moments,
        "total": weights + gradients + moments,
    }
