"""Whether the scales and tables of a quantized checkpoint are numbers that weights can be multiplied by. They load at all levels.

uv run python -c "from shared_data.quantization.stored_values import *; check_values('a.SCB', np.ones(3, np.float32), 'model.safetensors')"
"""

from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from shared_data.errors import UserError
from shared_data.peft.nf4 import NF4_CODES, dynamic_codes

SCALES = (".SCB", ".absmax", ".nested_absmax", ".scales")
TABLES = (".quant_map", ".nested_quant_map")


def check_values(name: str, values: Shaped[np.ndarray, "..."], path: Path | str) -> None:
    """Raise `UserError` for a scale that is NaN or infinite, and for a table of levels that is not the format's own."""
    wrong = None
    if not np.isfinite(values).all():
        wrong = "holds NaN or infinity"
    elif name.endswith(TABLES):
        levels = dynamic_codes() if name.endswith(".nested_quant_map") else np.array(NF4_CODES)
        if np.abs(values - levels).max() > 1e-6:
            wrong = "does not hold the levels of this format"
    if wrong is not None:
        raise UserError(f"{path}: tensor {name} {wrong}; copy the file again")
