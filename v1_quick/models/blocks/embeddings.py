"""Token and position embeddings: both are `torch.nn.Embedding`.

python -c "import torch; from v1_quick.models.blocks.embeddings import *; print(TokenEmbedding(8, 4)(torch.tensor([[1, 2]])).shape)"
"""

from torch.nn import Embedding as PositionEmbedding
from torch.nn import Embedding as TokenEmbedding

__all__ = ["PositionEmbedding", "TokenEmbedding"]
