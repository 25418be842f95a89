"""The matrix product with a bias: `torch.nn.Linear` (weights [out, in]) and transformers' `Conv1D` (weights [in, out]).

python -c "import torch; from v1_quick.models.blocks.linear import Linear; print(Linear(4, 3)(torch.ones(2, 4)).shape)"
"""

from torch.nn import Linear
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D  # its arguments are in the order (out_features, in_features)

__all__ = ["Conv1D", "Linear", "linear"]
