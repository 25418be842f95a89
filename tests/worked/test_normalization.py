"""LayerNorm and RMSNorm of five channels with mean 3, deviation 4 and root mean square 5, as in v2_handwritten/models/blocks/normalization.md."""

import pytest
import torch

from tests.worked import agrees
from v2_handwritten.kernels import kernel
from v2_handwritten.models.blocks.normalization import RMSNorm, layer_norm, rms_norm

PAGE = "v2_handwritten/models/blocks/normalization.md"

A = torch.tensor([-3.0, 1, 3, 5, 9])
X = torch.stack([A, 2 * A, A + 3])  # a token, the same twice as large, the same plus a constant
GAIN = torch.tensor([1.0, 1, 2, 0.5, 1])
ONES, ZEROS = torch.ones(5), torch.zeros(5)
D_Y = torch.tensor([1.0, 0, 1, 2, 0])


def test_statistics() -> None:
    mean = X.mean(-1)
    deviation = X.var(-1, correction=0).sqrt()
    rms = (X * X).mean(-1).sqrt()
    agrees(PAGE, "statistics", torch.stack([mean, deviation, rms], dim=1))


def test_normalized_tokens_and_the_gain() -> None:
    agrees(PAGE, "LayerNorm", layer_norm(X, ONES, ZEROS, eps=0.0))
    agrees(PAGE, "RMSNorm", rms_norm(X, ONES, eps=0.0))
    outputs = [layer_norm(A, GAIN, ZEROS, eps=0.0), rms_norm(A, GAIN, eps=0.0)]
    agrees(PAGE, "with the gain", torch.stack([GAIN, *outputs]))


@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_gradients(kernels: str) -> None:
    """`plain` asks autograd, `fused` uses the derivatives of the page."""
    layer, rms = kernel(kernels, layer_norm), kernel(kernels, rms_norm)
    rows = [D_Y, D_Y * GAIN]  # dy, and g, the gradient of the normalized vector
    for norm in (lambda x, w: layer(x, w, ZEROS, 0.0), lambda x, w: rms(x, w, 0.0)):
        x, weight = A.clone().requires_grad_(), GAIN.clone().requires_grad_()
        norm(x, weight).backward(D_Y)
        assert x.grad is not None
        assert weight.grad is not None
        rows += [x.grad, weight.grad]
    agrees(PAGE, "gradients", torch.stack(rows))


def test_normalized_queries_have_scores_of_one_size() -> None:
    q, k, ones = torch.tensor([[2.0, 0], [20, 0]]), torch.tensor([2.0, 0]), torch.ones(2)
    normalized = rms_norm(q, ones, 0.0)
    before, after = q @ k / 2**0.5, normalized @ rms_norm(k, ones, 0.0) / 2**0.5
    agrees(PAGE, "QK-norm", torch.cat([q, normalized, before[:, None], after[:, None]], dim=1))


def test_a_norm_whose_gain_is_one_plus_its_weight() -> None:
    norm = RMSNorm(5, eps=0.0, offset=True)
    norm.load_state_dict({"weight": GAIN - 1})
    agrees(PAGE, "as Gemma has it", torch.stack([GAIN - 1, norm(A).detach()]))
