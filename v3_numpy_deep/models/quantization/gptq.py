"""GPTQ: round one input after the other, and let the inputs that are left make up for each error (Frantar et al. 2022).

Of a layer, what counts is not the weight but the output: ‖W X - Ŵ X‖² = Σ over rows of (w - ŵ) H (w - ŵ)ᵀ with H = X Xᵀ. Where column i
has been rounded, the best change of the later columns is (equation 2)

    error = (w_i - ŵ_i) / [H⁻¹]_ii,    w_j ← w_j - error · [H⁻¹]_ij   for j > i,    H⁻¹ of the inputs that are left

and the inputs that are left have the inverse (equation 3: one step of Gaussian elimination, in place of a new inversion)

    H⁻¹ ← H⁻¹ - [H⁻¹]_:i [H⁻¹]_i: / [H⁻¹]_ii    without row and column i

This is the algorithm as it is derived. In float32 its errors add up over thousands of columns; level 2 has the paper's cure, one Cholesky
factor that holds a row of each of these inverses, and changes later columns in one product for each 128.

Level 2: steps 2 and 3 of the paper. Theory: v2_handwritten/models/quantization/gptq.md.

    uv run python -c "import numpy as np; from v3_numpy_deep.models.quantization.gptq import *; print(gptq(np.random.randn(2, 16), np.eye(16), 8).codes)"
"""

import numpy as np
from jaxtyping import Float

from v3_numpy_deep.autograd import Array
from v3_numpy_deep.models.quantization.int4 import Int4Tensor, decode, encode, fit_groups

DAMPING = 0.01  # of the mean of H's diagonal, added to it


def gptq(
    weight: Float[Array, "O I"],
    hessian: Float[Array, "I I"],
    group_size: int,
    act_order: bool = False,
    damping: float = DAMPING,
) -> Int4Tensor:
    """Codes, scales and zero points of a weight for inputs with Σ x xᵀ = `hessian`, in float64.

    act_order: round the inputs with the largest activations first; neighbours in this order share a group. `group_size` divides I.
    """
    W, H, order = prepare(weight.astype(np.float64), hessian.astype(np.float64), act_order, damping)
    O, I = W.shape  # noqa: E741 - out and in
    inverse = np.linalg.inv(H)
    codes = np.zeros((O, I), np.uint8)
    scales, zeros = np.zeros((O, I // group_size)), np.zeros((O, I // group_size))
    for i in range(I):
        group = i // group_size
        if i % group_size == 0:  # the group's weights as they are now
            scales[:, group], zeros[:, group] = fit_groups(W[:, i : i + group_size])
        column = encode(W[:, i], scales[:, group], zeros[:, group])
        codes[:, i] = column
        error = (W[:, i] - decode(column, scales[:, group], zeros[:, group])) / inverse[0, 0]
        W[:, i + 1 :] -= error[:, None] * inverse[0, 1:]  # equation 2
        inverse = inverse[1:, 1:] - inverse[1:, :1] * (inverse[:1, 1:] / inverse[0, 0])  # equation 3
    back = np.argsort(order)
    return Int4Tensor(codes[:, back], scales, zeros.astype(np.uint8), (back // group_size).astype(np.int32))


def prepare(
    W: Float[Array, "O I"], H: Float[Array, "I I"], act_order: bool, damping: float
) -> tuple[Array, Array, Array]:
    """Weight and Hessian in the order in which columns are rounded, and that order; H damped so that it can be inverted.

    An input that is always 0 gets the weight 0, and reads nothing from the others.
    """
    diagonal = np.diagonal(H)
    order = np.argsort(-diagonal, kind="stable") if act_order else np.arange(len(H))
    is_dead = diagonal == 0
    if not is_dead.all():  # a layer that saw no input is rounded as it is
        W = np.where(is_dead, 0, W)
    H = H + np.diag(damping * diagonal.mean() + is_dead)
    return W[:, order], H[np.ix_(order, order)], order


def output_error(
    weight: Float[Array, "O I"], rounded: Float[Array, "O I"], hessian: Float[Array, "I I"]
) -> float:
    """‖(W - Ŵ) X‖² = Σ over rows of (w - ŵ) H (w - ŵ)ᵀ"""
    difference = weight.astype(np.float64) - rounded
    return float(np.vdot(difference @ hessian, difference))
