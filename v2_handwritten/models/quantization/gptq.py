"""GPTQ: round one input after the other, and let the inputs that are left make up for each error (Frantar et al. 2022).

Of a layer, what counts is not the weight but the output: ‖W X - Ŵ X‖² = Σ over rows of (w - ŵ) H (w - ŵ)ᵀ with H = X Xᵀ. Where column i
has been rounded, the best change of the later columns is (equation 2)

    error = (w_i - ŵ_i) / [H⁻¹]_ii,    w_j ← w_j - error · [H⁻¹]_ij   for j > i,    H⁻¹ of the inputs that are left

All these H⁻¹ are rows of one matrix: U with UᵀU = H⁻¹, upper triangular (step 3, Cholesky). Within a block of 128 columns changes are made at
once; those of all later columns are one product at the end of the block (step 2, lazy batches).

Level 3: equations 2 and 3 as they stand, without Cholesky. Theory: gptq.md.

    uv run python -c "import torch; from v2_handwritten.models.quantization.gptq import *; print(gptq(torch.randn(2, 16), torch.eye(16), 8).codes)"
"""

import torch
from jaxtyping import Float
from torch import Tensor

from v2_handwritten.models.quantization.int4 import Int4Tensor, decode, encode, fit_groups

DAMPING = 0.01  # of the mean of H's diagonal, added to it
BLOCK = 128  # columns between two products


def gptq(
    weight: Float[Tensor, "O I"],
    hessian: Float[Tensor, "I I"],
    group_size: int,
    act_order: bool = False,
    damping: float = DAMPING,
) -> Int4Tensor:
    """Codes, scales and zero points of a weight for inputs with Σ x xᵀ = `hessian`, in float64.

    act_order: round the inputs with the largest activations first; neighbours in this order share a group. `group_size` divides I.
    """
    W, H = weight.detach().double().clone(), hessian.double().to(weight.device)
    W, H, order = prepare(W, H, act_order, damping)
    O, I = W.shape  # noqa: E741 - out and in
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    codes, groups = torch.zeros_like(W), I // group_size
    scales, zeros = W.new_zeros(O, groups), W.new_zeros(O, groups)
    width = max(group_size, BLOCK // group_size * group_size)  # whole groups
    for begin in range(0, I, width):
        end = min(begin + width, I)
        errors = W.new_zeros(O, end - begin)
        for i in range(begin, end):
            group = i // group_size
            if i % group_size == 0:  # the group's weights as they are now
                scales[:, group], zeros[:, group] = fit_groups(W[:, i : i + group_size])
            codes[:, i] = encode(W[:, i], scales[:, group], zeros[:, group])
            rounded = decode(codes[:, i], scales[:, group], zeros[:, group])
            error = (W[:, i] - rounded) / U[i, i]
            W[:, i + 1 : end] -= error.unsqueeze(1) * U[i, i + 1 : end]
            errors[:, i - begin] = error
        W[:, end:] -= errors @ U[begin:end, end:]
    back = order.argsort()
    g_idx = (back // group_size).to(torch.int32)
    return Int4Tensor(codes[:, back].to(torch.uint8), scales, zeros.to(torch.uint8), g_idx)


def prepare(
    W: Float[Tensor, "O I"], H: Float[Tensor, "I I"], act_order: bool, damping: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Weight and Hessian in the order in which columns are rounded, and that order; H damped so that it can be inverted.

    An input that is always 0 gets the weight 0, and reads nothing from the others.
    """
    diagonal = H.diagonal()
    order = (
        diagonal.argsort(descending=True, stable=True) if act_order else torch.arange(len(H), device=H.device)
    )
    is_dead = diagonal == 0
    W = (
        W.masked_fill(is_dead, 0) if not bool(is_dead.all()) else W
    )  # a layer that saw no input is rounded as it is
    added = damping * diagonal.mean() + is_dead.to(H.dtype)
    H = H + torch.diag(added)
    return W[:, order], H[order][:, order], order


def output_error(
    weight: Float[Tensor, "O I"], rounded: Float[Tensor, "O I"], hessian: Float[Tensor, "I I"]
) -> float:
    """‖(W - Ŵ) X‖² = Σ over rows of (w - ŵ) H (w - ŵ)ᵀ"""
    difference = (weight - rounded).double()
    return float(((difference @ hessian.double()) * difference).sum())
