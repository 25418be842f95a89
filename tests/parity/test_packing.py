"""Levels 1 and 2: a packed batch has the loss and all gradients of its documents run one by one."""

import pytest
import torch
from torch import Tensor

from tests.parity.arrays import integers
from tests.parity.model_cases import config_of, gradients, packed, pair
from tests.parity.recorder import ParityRecorder
from tests.parity.test_transformer import relative

LENGTHS = [
    [30, 1, 39],
    [66, 4],
]  # one document of a single token; one that crosses a tile of the attention kernel
TOLERANCE = 1e-14  # float64; the library's float32 islands are the same on both sides of the comparison


def one_by_one(model: torch.nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Backward of every document by itself, weighted by its tokens; returns the loss."""
    loss = torch.zeros((), dtype=torch.float64)
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            piece = slice(start, start + length)
            part = model.loss(ids[row : row + 1, piece], labels[row : row + 1, piece]) * length / ids.numel()
            part.backward()
            loss += part.detach()
            start += length
    return loss


@pytest.mark.parametrize("case", ["gpt2", "llama GQA", "llama MQA, biases, D > C/H"])
@pytest.mark.parametrize("level", ["v2", "v1 position_ids", "v1 mask"])
def test_packed_documents_have_the_loss_and_gradients_of_documents_one_by_one(
    parity: ParityRecorder, case: str, level: str
) -> None:
    ours, library = pair(case)
    model = ours if level == "v2" else library
    V = config_of(case).vocab_size
    ids, labels = torch.from_numpy(integers(1, V, 2, 70)), torch.from_numpy(integers(2, V, 2, 70))
    expected_loss = one_by_one(model, ids, labels)
    expected = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad()
    inputs = packed(LENGTHS)
    if level == "v1 position_ids":  # the library finds the documents by itself where positions restart
        inputs.pop("packing")
    loss = model.loss(ids, labels, **inputs)
    loss.backward()
    for quantity, actual, wanted in (
        ("loss", loss, expected_loss),
        ("every gradient", relative(gradients(model), expected), relative(expected, expected)),
    ):
        parity(
            component=f"packing, {case}",
            quantity=quantity,
            levels=level,
            actual=actual,
            expected=wanted,
            tolerance=TOLERANCE,
        )


def test_without_the_mask_documents_would_see_each_other() -> None:
    ours, _ = pair("llama GQA")
    ids = torch.from_numpy(integers(1, 96, 2, 70))
    with torch.no_grad():
        masked, unmasked = ours(ids, **packed(LENGTHS)), ours(ids)
    torch.testing.assert_close(masked[:, :4], unmasked[:, :4])  # the first document is the same
    assert (masked[0, 30:] - unmasked[0, 30:]).abs().max() > 0.1
