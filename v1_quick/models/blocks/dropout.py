"""Dropout: `torch.nn.functional.dropout`, which draws from torch's global generator.

python -c "import torch; from v1_quick.models.blocks.dropout import dropout; print(dropout(torch.ones(8), 0.5, True))"
"""

from torch.nn.functional import dropout

__all__ = ["dropout"]
