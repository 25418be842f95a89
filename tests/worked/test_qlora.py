"""One block of eight weights in NF4, as in v2_handwritten/models/peft/qlora.md."""

import torch

from shared_data.peft.nf4 import NF4_CODES
from tests.worked import agrees
from v2_handwritten.models.peft.qlora import dequantize_nf4, quantize_nf4

PAGE = "v2_handwritten/models/peft/qlora.md"

WEIGHTS = torch.tensor([0.3, -1.2, 0.05, 0.8, -0.4, 0.0, 2.0, -0.9])


def nf4(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bytes, codes and decoded weights of a block."""
    quantized = quantize_nf4(weights, block_size=8, double_quantization=False)
    codes = torch.stack([quantized.codes >> 4, quantized.codes & 15], dim=1).flatten()
    assert quantized.scales.tolist() == [weights.abs().max()]
    return quantized.codes, codes, dequantize_nf4(quantized)


def test_codes_and_decoded_weights() -> None:
    packed, codes, decoded = nf4(WEIGHTS)
    levels = torch.tensor(NF4_CODES)[codes.long()]
    agrees(
        PAGE, "block", torch.stack([WEIGHTS, WEIGHTS / 2, codes, levels, decoded, decoded - WEIGHTS], dim=1)
    )
    assert packed.tolist() == [0x92, 0x7C, 0x57, 0xF3]


def test_levels() -> None:
    agrees(PAGE, "levels", torch.tensor(NF4_CODES).view(2, 8))


def test_an_outlier_takes_the_resolution_of_its_block() -> None:
    weights = WEIGHTS.clone()
    weights[6] = 20
    _, codes, decoded = nf4(weights)
    agrees(PAGE, "outlier", torch.stack([weights, codes, decoded]))
