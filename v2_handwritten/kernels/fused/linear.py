"""Several linear layers on the same input as one matrix product: a large one uses a processor better than three small ones.

merged_linear(x, [q_proj, k_proj, v_proj])   # as models/blocks/linear.py
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from v2_handwritten.models.blocks import linear as plain
from v2_handwritten.models.weight_layout import side_by_side


def merged_linear(x: Float[Tensor, "*rows I"], layers: Sequence[nn.Module]) -> Float[Tensor, "*rows O"]:
    """The outputs of several layers side by side, computed as one product with their weights stacked.

    A layer that is not exactly `Linear` (an adapter around one, say) is called by itself: the plain version does that.
    """
    linears = [layer for layer in layers if type(layer) is plain.Linear]
    if len(linears) < len(layers):
        return plain.merged_linear(x, layers)
    weights = tuple(layer.weight for layer in linears)
    joined = [] if torch.is_grad_enabled() else side_by_side([weight.T for weight in weights])
    weight = joined[0].T if len(joined) == 1 else torch.cat(weights)
    biases = tuple(layer.bias for layer in linears if layer.bias is not None)
    dtype = linears[0].compute_dtype or weight.dtype
    return plain.linear(x.to(dtype), weight.to(dtype), torch.cat(biases).to(dtype) if biases else None)
