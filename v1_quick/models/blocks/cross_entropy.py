"""The loss of a language model: `torch.nn.functional.cross_entropy`.

python -c "import torch; from v1_quick.models.blocks.cross_entropy import *; print(cross_entropy(torch.zeros(2, 8), torch.tensor([1, 2])))"
"""

import torch
from torch import Tensor

IGNORE_INDEX = -100  # a target that does not count: padding, or the prompt in instruction tuning


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Mean of -log softmax(logits [N, V])[targets [N]] over the targets that are not `ignore_index`."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(wide, targets, ignore_index=ignore_index)
