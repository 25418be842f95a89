"""The three levels' models with the same weights, for tests of evaluation and generation."""

import numpy as np
import torch

from tests.parity.model_cases import config_of, pair
from v1_quick.models.transformer import Transformer as LibraryTransformer
from v2_handwritten.models.transformer import Transformer
from v3_numpy_deep.models.config import ModelConfig as ArrayConfig
from v3_numpy_deep.models.transformer import Transformer as ArrayTransformer


def trio(
    case: str, dtype: torch.dtype = torch.float64
) -> tuple[LibraryTransformer, Transformer, ArrayTransformer]:
    """Levels 1, 2 and 3 in this order, in evaluation mode."""
    ours, library = pair(case, dtype)
    arrays = ArrayTransformer(ArrayConfig.from_hf(config_of(case).to_hf()))
    arrays.to(str(dtype).removeprefix("torch."))
    arrays.load_state_dict({name: tensor.numpy() for name, tensor in ours.state_dict().items()})
    return library.eval(), ours.eval(), arrays.eval()


def prompts(case: str, lengths: tuple[int, ...] = (5, 1, 9)) -> list[list[int]]:
    """Prompts of different lengths, none with the id that ends a text."""
    generator = np.random.default_rng(7)
    return [generator.integers(4, config_of(case).vocab_size, length).tolist() for length in lengths]
