"""Two attention maps with one output, as in v2_handwritten/inference/inspection.md."""

import math

import torch

from tests.worked import agrees
from v2_handwritten.models.blocks.attention import attention_weights, causal_attention

PAGE = "v2_handwritten/inference/inspection.md"

V = torch.tensor([[0.1, 0], [1, 0], [0, 2], [1, 0]])  # <|endoftext|>, fox, saw, fox: [S = 4, D = 2]
MAPS = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.5, 0.05, 0.15, 0.3]])


def test_two_maps_give_one_output_and_the_largest_weight_does_least() -> None:
    lengths = V.norm(dim=1)
    agrees(PAGE, "v", torch.cat([V, lengths[:, None]], 1))
    outputs = []
    for weights in MAPS:  # each from a query that reads these keys with exactly these weights
        q = torch.tensor([math.sqrt(2), 0.0]).view(1, 1, 1, 2)
        k = torch.stack([weights.log(), torch.zeros(4)], 1).view(1, 1, 4, 2)
        torch.testing.assert_close(attention_weights(q, k).flatten(), weights)
        outputs.append(causal_attention(q, k, V.view(1, 1, 4, 2)).flatten())
    agrees(PAGE, "weights", MAPS)
    agrees(PAGE, "output", torch.stack(outputs))
    torch.testing.assert_close(outputs[0], outputs[1])
    agrees(PAGE, "weight times length", (MAPS[0] * lengths)[None])


def test_a_direction_that_the_values_do_not_see_moves_weights_and_no_output() -> None:
    n = torch.tensor([0.0, -1, 0, 1])
    assert not (n @ V).any()
    assert n.sum() == 0
    torch.testing.assert_close(MAPS[0] + 0.25 * n, MAPS[1])
