"""Which experts a model sends the tokens of a text to. What is counted from it: shared_data/evaluation/expert_reading.py.

Level 1 has no such file: it would need hooks. Level 3: the same over NumPy. Theory: shared_data/story_world/segments.md.

    chosen_experts(model, tokenizer.encode("Once upon a time"))  # [layers, T, k]
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int

from v2_handwritten.models.blocks.mixture_of_experts import Routing
from v2_handwritten.models.transformer import Transformer


@torch.inference_mode()
def chosen_experts(model: Transformer, ids: Sequence[int]) -> Int[np.ndarray, "layers T k"]:
    """The k experts of each token, in each layer that has experts, without dropout; the model is left as it was.

    Raises `UserError` for more ids than the model has positions.
    """
    was_training = model.training
    routings: list[Routing] = []
    model.eval().hidden_states(
        torch.tensor([ids], device=model.token_embedding.weight.device), routings=routings
    )
    model.train(was_training)
    return np.stack([routing.experts.cpu().numpy() for routing in routings])
