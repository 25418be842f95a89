"""Level 2 and the library: looking rows up, and adding the gradients of ids that occur often onto their row."""

import torch

from tests.parity.arrays import array, integers
from tests.parity.block_checks import compare_modules, each_kernel, randomise
from tests.parity.recorder import ParityRecorder
from v2_handwritten.models.blocks.embeddings import PositionEmbedding, TokenEmbedding


@each_kernel
def test_repeated_tokens_add_up_their_gradients(parity: ParityRecorder, kernels: str) -> None:
    ids = torch.from_numpy(integers(0, 5, 3, 40))  # 120 occurrences of 5 tokens
    for ours in (TokenEmbedding(7, 8), PositionEmbedding(7, 8)):
        ours.kernels = kernels
        theirs = randomise(torch.nn.Embedding(7, 8))
        ours.double().load_state_dict(theirs.state_dict())
        direction = torch.from_numpy(array(1, 3, 40, 8))
        outputs = [module(ids) for module in (ours, theirs)]
        for output in outputs:
            output.backward(direction)
        assert ours.weight.grad is not None
        for quantity, actual, expected in (
            ("output", outputs[0], outputs[1]),
            ("grad weight", ours.weight.grad, theirs.weight.grad),
        ):
            parity(
                component=f"embeddings, {kernels}, {type(ours).__name__}",
                quantity=quantity,
                levels="v2-v1",
                actual=actual,
                expected=expected,
                tolerance=1e-15,
            )
        assert (ours.weight.grad[5:] == 0).all()  # the two tokens that never occur


def test_module_comparison_notices_a_wrong_gradient() -> None:
    class Wrong(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) + 0.001 * (self.bias - self.bias.detach())

    try:
        compare_modules(
            ParityRecorder(),
            "check",
            Wrong(4, 3).double(),
            torch.nn.Linear(4, 3).double(),
            torch.ones(2, 4).double(),
            1e-9,
        )
    except AssertionError as error:
        assert "grad bias" in str(error)  # noqa: PT017
    else:
        raise AssertionError("a gradient that is off by 0.1 % passed")
